#!/usr/bin/env bash
# Train under Slurm: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=8 SRUN_ARGS=...] \
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS]" >&2; exit 2; }
gpus="${GPUS:-2}"; per_node="${GPUS_PER_NODE:-$(( gpus < 8 ? gpus : 8 ))}"
root="$(cd "$(dirname "$0")/.." && pwd)"
# In a checkout; an installed package is found anyway.
[ ! -d "$root/codmoe" ] || export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun -p "$1" --job-name="$2" --gres=gpu:"$per_node" --ntasks="$gpus" \
  --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$root/tools/train.py" "$3" --launcher slurm "${@:4}"

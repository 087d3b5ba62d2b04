#!/usr/bin/env bash
# Train under Slurm: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=8 SRUN_ARGS=...] \
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# It runs in the terminal. REQUEUE=1 submits it as a batch job, which Slurm warns WARNING (120) seconds before
# its time is over: it then saves, is queued again and goes on; SRUN_ARGS (--time=4:00:00) go to sbatch.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS]" >&2; exit 2; }
gpus="${GPUS:-2}"; per_node="${GPUS_PER_NODE:-$(( gpus < 8 ? gpus : 8 ))}"
# Slurm runs a copy of a batch script, from which the tools are not found.
root="${CODMOE_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}"
# In a checkout; an installed package is found anyway.
[ ! -d "$root/codmoe" ] || export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
job=(-p "$1" --job-name="$2" --gres=gpu:"$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node"
     --cpus-per-task="${CPUS_PER_TASK:-8}")
train=("${PYTHON:-python}" -u "$root/tools/train.py" "$3" --launcher slurm "${@:4}")
if [ "${REQUEUE:-0}" = 0 ]; then
  export CODMOE_COMMAND="${CODMOE_COMMAND-bash $0$(printf " %q" "$@")}"  # what goes on after an interruption
  # shellcheck disable=SC2086  # SRUN_ARGS is a list of words
  exec srun "${job[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${train[@]}"
elif [ -z "${SLURM_JOB_ID:-}" ]; then
  export CODMOE_ROOT="$root" CODMOE_COMMAND=""
  # shellcheck disable=SC2086
  exec sbatch "${job[@]}" --requeue --open-mode=append --signal=USR1@"${WARNING:-120}" ${SRUN_ARGS:-} "$0" "$@"
fi
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || train+=(--auto-resume)
code=0; srun --cpus-per-task="${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 "${train[@]}" || code=$?
if [ "$code" = 138 ]; then  # 128 and SIGUSR1
  echo "job $SLURM_JOB_ID is queued again and goes on by itself"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: dist_run.sh SCRIPT PROCESSES [ARGUMENTS OF THE SCRIPT]
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
script="$1"; processes="$2"; shift 2
case "$processes" in ''|*[!0-9]*|0) echo "error: number of GPUs is '$processes', not 1 or more" >&2; exit 2;; esac
if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
  rendezvous=(--standalone)  # picks a free port, so that two runs share a machine
else
  rendezvous=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
              --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
fi
if [ -z "${OMP_NUM_THREADS:-}" ]; then
  threads=$(( $(getconf _NPROCESSORS_ONLN) / processes ))
  export OMP_NUM_THREADS=$(( threads > 0 ? threads : 1 ))
fi
# In a checkout; an installed package is found anyway.
[ ! -d "$root/codmoe" ] || export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$(dirname "$0")/dist_run.py" "${rendezvous[@]}" --nproc_per_node "$processes" \
  "$script" "$@" --launcher pytorch

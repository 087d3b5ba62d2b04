#!/usr/bin/env bash
# Train on several GPUs: bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several nodes: set NNODES, NODE_RANK, MASTER_ADDR and PORT. Without a GPU: as many CPU processes.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash tools/dist_train.sh CONFIG GPUS [ARGUMENTS]" >&2; exit 2; }
export CODMOE_COMMAND="${CODMOE_COMMAND-bash $0$(printf " %q" "$@")}"  # what goes on after an interruption
exec bash "$(dirname "$0")/dist_run.sh" "$(dirname "$0")/train.py" "$2" "$1" "${@:3}"

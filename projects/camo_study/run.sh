#!/usr/bin/env bash
# Trains, tests and measures the rows on two GPUs, two at a time on each of them:
#   bash projects/camo_study/run.sh
# A row that is trained, or tested, is left out. LIMIT ends everything after so many seconds, and
# training RESERVE seconds earlier. Logs: work_dirs/camo/, results: results/.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
python=${PYTHON:-python3} here=projects/camo_study configs=projects/camo_study/configs
results=results weights=checkpoints_moe/camo logs=work_dirs/camo
limit=${LIMIT:-1000000} reserve=${RESERVE:-0} gpus=${GPUS:-2} options=${OPTIONS:-}
mkdir -p "$results" "$logs"
began=$(date +%s)

passed() { echo $(($(date +%s) - began)); }
left() { echo $((limit - $(passed))); }
left_to_train() { local s=$(($(left) - reserve)); echo $((s > 1 ? s : 1)); }
say() { echo "$(passed) s: $*"; }

name_of() { # ROW: the name of the weights that it leaves
  sed -n 's/.*best=dict(name="\([a-z0-9_]*\)").*/\1/p' "$configs/$1.py"
}

train() { # GPU ROW [OPTION ...]
  local gpu=$1 row=$2
  shift 2
  if [ ! -f "$logs/$row/finished.json" ]; then
    say "train $row on $gpu"
    CUDA_VISIBLE_DEVICES=$((gpu % gpus)) timeout -s INT "$(left_to_train)" $python tools/train.py \
      "$configs/$row.py" --work-dir "$logs/$row" --cfg-options randomness.seed=0 $options "$@" \
      >"$logs/$row.train.log" 2>&1
    say "trained $row: $?"
  fi
  [ -f "$weights/$(name_of "$row")_best.pth" ]
}

score() { # GPU ROW RESULT [OPTION ...]
  local gpu=$1 row=$2 result=$3
  shift 3
  [ -f "$results/$result.json" ] && return 0
  CUDA_VISIBLE_DEVICES=$((gpu % gpus)) timeout "$(left)" $python tools/test.py "$configs/$row.py" \
    "$weights/$(name_of "$row")_best.pth" --experts --json "$results/$result.json" \
    --work-dir "$logs/test_$result" --cfg-options randomness.seed=0 $options "$@" >"$logs/$result.test.log" 2>&1
  say "tested $result: $?"
}

both() { train "$1" "$2" && score "$1" "$2" "$2"; }

await() { # FILE: until it is there, at most until a third of the time for training is left
  until [ -f "$1" ] || [ "$(left_to_train)" -lt $(((limit - reserve) / 3)) ]; do sleep 2; done
  [ -f "$1" ]
}

# Stage 3 takes the time that is left, at most 14 epochs.
epochs_left() {
  $python - "$logs/joint/finished.json" "$(left_to_train)" <<'E2'
import json, sys
done = json.load(open(sys.argv[1]))
each = 1.15 * done["seconds"] / max(done["epochs"], 1)
print(max(2, min(14, int((float(sys.argv[2]) - 40) / each))))
E2
}

mixture() {
  train 0 joint || return
  score 0 joint joint &
  local truth=""
  if ! await "$results/fold0.json" || ! await "$results/fold1.json"; then
    say "no copies by folds in time: the router learns from the experts themselves"
    truth="model.router_truth=None"
  fi
  train 0 router $truth || return
  score 1 router router &
  if [ "$limit" -lt 1000000 ] && [ -f "$logs/joint/finished.json" ]; then
    local epochs
    epochs=$(epochs_left)
    train 0 stage3 $truth train_cfg.max_epochs="$epochs" train_cfg.val_interval=$(((epochs + 1) / 2)) || return
  else
    train 0 stage3 $truth || return
  fi
  score 0 stage3 stage3 &
  score 1 stage3 stage3_all model.top_k=5 &
  score 0 stage3 stage3_shared model.top_k=3 "model.shared_experts=('fpn',)" &
  wait
}
{
  mixture
  wait
} &
{
  both 1 fold0
  both 1 fold1
  both 1 joint_one_scale
} &
{
  both 1 plain_448
  both 1 plain_728
} &
{
  both 0 plain_560
} &
wait
say "measure"
measure() { # GPU RESULT [ARGUMENT ...]
  local gpu=$1 result=$2
  shift 2
  CUDA_VISIBLE_DEVICES=$((gpu % gpus)) timeout "$(left)" $python $here/measure.py \
    plain_448 plain_560 plain_728 joint joint_one_scale stage3 --json "$results/$result.json" \
    --work-dir "$logs" "$@" >"$logs/$result.log" 2>&1
  say "measured $result: $?"
}
more=(--subsets stage3 joint --mean plain_728+stage3 plain_448+plain_560+plain_728+stage3)
measure 0 alike_test --part test "${more[@]}" &
{
  measure 1 alike_val --part val "${more[@]}"
  measure 1 alike_test_flip --part test --flip
} &
wait
say "done"

# Stage 1b: the heads learn once more on a backbone that no longer moves.
_base_ = ["./expert.py"]
init_from = dict(
    file="experts_joint_best.pth",
    parts=("backbone", "experts"),
    command="codmoe train configs/experts/joint.py --gpus 2",
)
model = dict(frozen=("backbone",), expert_execution="sequential", evaluate_all_experts=True)
train_cfg = dict(max_epochs=10)
default_hooks = dict(best=dict(name="experts_refit"))

# Stage 1b: the heads learn once more on a backbone that no longer moves.
_base_ = ["./expert.py"]
init_from = dict(
    file="experts_joint_best.pth",
    parts=("backbone", "experts"),
    command="bash tools/dist_train.sh configs/experts/joint.py 2",
)
model = dict(
    frozen=("backbone",),
    expert_execution="sequential",  # as joint.py
    evaluate_all_experts=True,
)
train_cfg = dict(max_epochs=10)
default_hooks = dict(best=dict(name="experts_refit"))

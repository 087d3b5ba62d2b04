# Stage 1 of the quickstart: the shipped weights, trained further on synthetic images of 168 px, on
# two CPU cores. They know images of this kind, but none of these.
_base_ = [
    "../_base_/stages/joint.py",
    "../_base_/datasets/synthetic.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "quickstart/checkpoints_moe"
init_from = dict(file="small", parts=("backbone", "experts"))
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    frozen=("backbone.body",),  # it knows photographs, and a step takes half the time
    expert_execution="together",
    checkpoint_backbone=None,
)
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=10), warmup=dict(epochs=0))

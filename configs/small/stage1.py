# Stage 1 of the small ensemble that ships with the package.
_base_ = [
    "../_base_/stages/joint.py",
    "../_base_/datasets/freely_licensed.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "checkpoints_moe/small"
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    expert_execution="together",
    checkpoint_backbone=None,
)
# 1,500 steps: minutes on one GPU. The backbone learns from the start, at 2e-5.
train_cfg = dict(max_epochs=8, val_interval=2)
default_hooks = dict(warmup=dict(epochs=0))
env_cfg = dict(cudnn_benchmark=False)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4),
    paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=0.05)}),
)

# Stage 1 of the small ensemble whose weights ship with the package.
_base_ = [
    "../_base_/stages/joint.py",
    "../_base_/datasets/freely_licensed.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "checkpoints_moe/small"
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    checkpoint_backbone=None,
)
# Minutes on one GPU; the backbone learns from the start, for there is no epoch to spare.
train_cfg = dict(max_epochs=2)
default_hooks = dict(warmup=dict(epochs=0))
env_cfg = dict(cudnn_benchmark=False)
optim_wrapper = dict(
    # 666 steps: a higher rate than the real config's 3e-4.
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=0.2)}),
)

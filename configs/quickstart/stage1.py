# A miniature of configs/experts/joint.py on synthetic images, for two CPU cores.
_base_ = [
    "../_base_/stages/joint.py",
    "../_base_/datasets/synthetic.py",
    "../_base_/models/miniature.py",
]
checkpoint_dir = "quickstart/checkpoints_moe"
model = dict(
    backbone={{_base_.miniature.backbone}},
    experts={{_base_.miniature.experts}},
    checkpoint_backbone=None,
)
train_cfg = dict(max_epochs=9, val_interval=3)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    # Nothing is pretrained here, so the backbone learns from the start and at the full rate.
    paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=1.0)}),
)
default_hooks = dict(logger=dict(interval=20), warmup=dict(epochs=0))

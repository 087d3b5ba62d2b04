# A miniature of configs/ensemble/stage3.py on synthetic images, for two CPU cores.
_base_ = [
    "../_base_/stages/ensemble.py",
    "../_base_/datasets/synthetic.py",
    "../_base_/models/miniature.py",
]
checkpoint_dir = "quickstart/checkpoints_moe"
init_from = dict(command="codmoe train configs/quickstart/stage2.py")
model = dict(
    backbone={{_base_.miniature.backbone}},
    experts={{_base_.miniature.experts}},
    router=dict(width=64),
    # There is memory enough: nothing is computed twice.
    expert_execution="together",
    checkpoint_backbone=None,
)
train_cfg = dict(max_epochs=6, val_interval=2)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=1.0)}),
)
default_hooks = dict(logger=dict(interval=20))

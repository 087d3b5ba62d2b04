# A miniature of configs/router/stage2.py on synthetic images, for two CPU cores.
_base_ = [
    "../_base_/stages/router.py",
    "../_base_/datasets/synthetic.py",
    "../_base_/models/miniature.py",
]
checkpoint_dir = "quickstart/checkpoints_moe"
init_from = dict(command="codmoe train configs/quickstart/stage1.py")
model = dict(
    backbone={{_base_.miniature.backbone}},
    experts={{_base_.miniature.experts}},
    router=dict(width=64),
)
train_dataloader = dict(dataset=dict(part="router", length=240))
train_cfg = dict(max_epochs=8, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=20))

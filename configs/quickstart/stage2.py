# Stage 2 of the quickstart: a router of its own, on images that the experts have not seen.
_base_ = [
    "../_base_/stages/router.py",
    "../_base_/datasets/synthetic.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "quickstart/checkpoints_moe"
init_from = dict(command="codmoe train configs/quickstart/stage1.py")
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    router=dict(width=64),
    top_k=3,
)
train_dataloader = dict(dataset=dict(part="router", length=240))
train_cfg = dict(max_epochs=6, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=10), frozen_cache=dict(views=2))

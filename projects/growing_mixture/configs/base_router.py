# Its router, as small/stage2.
_base_ = ["../../../configs/_base_/stages/router.py", "./_base_/growing.py"]
checkpoint_dir = "checkpoints_moe/growing"
init_from = dict(
    file="base_experts_best.pth",
    command="python projects/growing_mixture/run.py run --rows base_experts",
)
model = dict(
    backbone={{_base_.small_backbone}}, experts={{_base_.small_experts}}, router=dict(width=64)
)
train_cfg = {{_base_.schedule}}
train_dataloader = dict(dataset=dict(datasets={{_base_.training.old_router}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.old}}))
optim_wrapper = {{_base_.rates}}
default_hooks = dict(
    best=dict(name="base_router"),
    checkpoint={{_base_.checkpoint}},
    frozen_cache=dict(views=4, limit_gb=24.0),
)
env_cfg = dict(cudnn_benchmark=False)

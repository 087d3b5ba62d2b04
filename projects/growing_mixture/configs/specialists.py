# The three specialists and a router, which learns from images that they have not seen.
_base_ = ["../../../configs/_base_/stages/router.py", "./_base_/growing.py"]
checkpoint_dir = "checkpoints_moe/growing"
init_from = dict(
    _delete_=True,
    backbone="camo_best.pth",
    experts=dict(camo="camo_best.pth", duts="duts_best.pth", polyp="polyp_best.pth"),
    command="python projects/growing_mixture/run.py run --rows camo duts polyp",
)
model = dict(
    backbone={{_base_.small_backbone}},
    experts=dict(
        _delete_=True,
        camo={{_base_.specialist}},
        duts={{_base_.specialist}},
        polyp={{_base_.specialist}},
    ),
    # What makes the pyramid of the shared blocks is new, and learns with the router, which alone
    # reads it.
    frozen=("backbone.body", "experts"),
    router=dict(width=64),
    routing_losses=dict(balance=None),
)
train_cfg = {{_base_.schedule}}
train_dataloader = dict(dataset=dict(datasets={{_base_.training.router}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.all}}))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
default_hooks = dict(
    best=dict(name="specialists"), checkpoint={{_base_.checkpoint}}, frozen_cache=None
)
env_cfg = dict(cudnn_benchmark=False)

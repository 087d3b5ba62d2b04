# The mixture with a fifth expert, for polyps: it and its chance against the others learn, nothing
# else.
_base_ = ["./base_router.py"]
init_from = dict(
    _delete_=True,
    file="base_router_best.pth",
    grow=True,
    command="python projects/growing_mixture/run.py run --rows base_experts base_router",
)
model = dict(
    # Its last ten blocks, its adapter, begin as those of the trained backbone.
    experts=dict(polyp={{_base_.newcomer}}),
    newcomers=("polyp",),
    frozen=("backbone", "experts.pranet", "experts.sinet", "experts.ujsc", "experts.zoomnet"),
    expert_loss_weight=1.0,
    # Half of the images are polyps: equal shares are not wanted.
    routing_losses=dict(balance=None),
    checkpoint_backbone=None,
)
train_dataloader = dict(dataset=dict(datasets={{_base_.training.grown}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.all}}))
default_hooks = dict(best=dict(name="grown"), frozen_cache=None)

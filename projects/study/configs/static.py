# The best weights that are the same for every image: a router that does not look.
_base_ = ["./_base_/router.py"]
model = dict(
    router=dict(_delete_=True, type="StaticRouter"),
    top_k=None,
    routing_losses=dict(distill=None, balance=None, z=None),
)
# Four numbers: they may move fast, and are not to be drawn back to equal weights.
optim_wrapper = dict(optimizer=dict(lr=5e-2, weight_decay=0.0))
default_hooks = dict(best=dict(name="router_static"))

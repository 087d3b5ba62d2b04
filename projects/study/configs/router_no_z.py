# router_top2 trained without the z loss.
_base_ = ["./_base_/router.py"]
model = dict(routing_losses=dict(z=None))
default_hooks = dict(best=dict(name="router_no_z"))

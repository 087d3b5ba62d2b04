# router_top2 trained without the distill loss.
_base_ = ["./_base_/router.py"]
model = dict(routing_losses=dict(distill=None))
default_hooks = dict(best=dict(name="router_no_distill"))

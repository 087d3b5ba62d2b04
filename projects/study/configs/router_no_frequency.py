# router_top2 whose router has no frequency branch.
_base_ = ["./_base_/router.py"]
model = dict(router=dict(branches=dict(frequency=False)))
default_hooks = dict(best=dict(name="router_no_frequency"))

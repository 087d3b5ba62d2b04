# router_top2 whose router has no context branch.
_base_ = ["./_base_/router.py"]
model = dict(router=dict(branches=dict(context=False)))
default_hooks = dict(best=dict(name="router_no_context"))

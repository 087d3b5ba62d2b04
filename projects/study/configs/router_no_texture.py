# router_top2 whose router has no texture branch.
_base_ = ["./_base_/router.py"]
model = dict(router=dict(branches=dict(texture=False)))
default_hooks = dict(best=dict(name="router_no_texture"))

# polyp_router_top2 with a learned temperature: averaging leaves maps soft.
_base_ = ["./_base_/polyp_router.py"]
model = dict(combiner=dict(learn_temperature=True))
default_hooks = dict(best=dict(name="router_temperature"))

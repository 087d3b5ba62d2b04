# router_top2 without the learned temperature.
_base_ = ["./_base_/router.py"]
model = dict(combiner=dict(learn_temperature=False))
default_hooks = dict(best=dict(name="router_no_temperature"))

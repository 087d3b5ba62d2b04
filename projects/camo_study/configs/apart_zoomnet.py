# One of five experts that are trained apart, on a backbone that is held.
_base_ = ["./_base_/apart.py"]
model = dict(
    frozen=("backbone",),
    experts=dict(_delete_=True, zoomnet={{_base_.mixture_apart.zoomnet}}),
)
train_cfg = {{_base_.apart_schedule}}
default_hooks = dict(best=dict(name="apart_zoomnet"))

# ZoomNetExpert alone, on a backbone of its own.
_base_ = ["./_base_/single.py"]
model = dict(experts=dict(_delete_=True, zoomnet={{_base_.zoomnet}}))
default_hooks = dict(best=dict(name="expert_zoomnet"))

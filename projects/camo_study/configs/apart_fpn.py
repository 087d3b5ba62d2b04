# One of five experts that are trained apart; its last ten blocks are the mixture's backbone.
_base_ = ["./_base_/apart.py"]
train_cfg = {{_base_.apart_schedule}}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.held}}))
default_hooks = dict(best=dict(name="apart_fpn"))

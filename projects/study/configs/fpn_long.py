# fpn for all epochs on the way to the ensemble: what the longer training alone gives.
_base_ = ["./_base_/fpn.py"]
train_cfg = {{_base_.budget.long.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.long.checkpoint}},
    best=dict(name="fpn_long"),
)

# fpn on the experts' images alone: the backbone that experts start from.
_base_ = ["./_base_/fpn.py"]
train_dataloader = dict(dataset=dict(split=dict(use=("experts",))))
train_cfg = {{_base_.budget.warm.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.warm.checkpoint}},
    best=dict(name="warm"),
)

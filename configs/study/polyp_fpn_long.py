# polyp_fpn for the epochs of stage 1 and stage 3 together: what the longer training alone gives.
_base_ = ["./_base_/polyp_single.py"]
model = dict(experts=dict(_delete_=True, fpn=dict(type="FPNExpert")))
train_cfg = {{_base_.budget.long.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.long.checkpoint}},
    best=dict(name="fpn_long"),
)

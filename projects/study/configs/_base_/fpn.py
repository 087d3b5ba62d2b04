# One plain FPN head.
_base_ = ["../../../../configs/_base_/stages/expert.py", "./study.py"]
checkpoint_dir = {{_base_.folder}}
# A model without a router may learn from the router's images too, as stage 3 does.
model = dict(
    backbone={{_base_.vit_backbone}},
    experts=dict(_delete_=True, fpn=dict(type="FPNExpert")),
    checkpoint_backbone=None,
)
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_graphs = {{_base_.graphs}}
train_cfg = {{_base_.budget.fpn.train_cfg}}
optim_wrapper = {{_base_.rates.fpn}}
default_hooks = dict(checkpoint={{_base_.budget.fpn.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

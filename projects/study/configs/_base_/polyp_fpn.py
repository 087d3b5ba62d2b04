_base_ = ["../../../../configs/_base_/stages/expert.py", "./polyp.py"]
checkpoint_dir = "checkpoints_moe/study/polyp"
# A model without a router may learn from the router's images too, as stage 3 does.
model = dict(backbone={{_base_.vit_backbone}}, checkpoint_backbone=None)
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_graphs = {{_base_.graphs}}
train_cfg = {{_base_.budget.fpn.train_cfg}}
optim_wrapper = {{_base_.rates.fpn}}
default_hooks = dict(checkpoint={{_base_.budget.fpn.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

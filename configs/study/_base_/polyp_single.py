_base_ = ["../../_base_/stages/expert.py", "./polyp.py"]
checkpoint_dir = "checkpoints_moe/study/polyp"
# A model without a router may learn from the router's images too, as stage 3 does.
model = dict(backbone={{_base_.vit_backbone}})
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_cfg = {{_base_.budget.stage1.train_cfg}}
optim_wrapper = {{_base_.budget.stage1.optim_wrapper}}
default_hooks = dict(checkpoint={{_base_.budget.stage1.checkpoint}})

_base_ = ["../../_base_/stages/joint.py", "./polyp.py"]
checkpoint_dir = "checkpoints_moe/study/polyp"
model = dict(backbone={{_base_.vit_backbone}})
train_cfg = {{_base_.budget.stage1.train_cfg}}
optim_wrapper = {{_base_.budget.stage1.optim_wrapper}}
default_hooks = dict(checkpoint={{_base_.budget.stage1.checkpoint}})

_base_ = ["../../_base_/stages/refit.py", "./polyp.py"]
checkpoint_dir = "checkpoints_moe/study/polyp"
init_from = dict(command="python tools/train.py configs/study/polyp_joint.py")
model = dict(backbone={{_base_.vit_backbone}})
train_cfg = {{_base_.budget.refit.train_cfg}}
optim_wrapper = {{_base_.budget.refit.optim_wrapper}}
default_hooks = dict(checkpoint={{_base_.budget.refit.checkpoint}})

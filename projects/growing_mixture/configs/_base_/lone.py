# A plain head on a ViT of its own.
_base_ = ["../../../../configs/_base_/stages/expert.py", "./growing.py"]
checkpoint_dir = "checkpoints_moe/growing"
model = dict(
    backbone={{_base_.small_backbone}},
    experts=dict(_delete_=True, plain={{_base_.plain}}),
    checkpoint_backbone=None,
)
train_cfg = {{_base_.schedule}}
optim_wrapper = {{_base_.rates}}
default_hooks = dict(checkpoint={{_base_.checkpoint}})
env_cfg = dict(cudnn_benchmark=False)

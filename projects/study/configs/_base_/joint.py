_base_ = ["../../../../configs/_base_/stages/joint.py", "./study.py"]
checkpoint_dir = {{_base_.folder}}
init_from = {{_base_.warm}}
model = dict(
    backbone={{_base_.vit_backbone}},
    experts=dict(zoomnet={{_base_.zoomnet}}),
    # Everything kept, nothing computed twice.
    expert_execution="together",
    checkpoint_backbone=None,
)
train_cfg = {{_base_.budget.joint.train_cfg}}
optim_wrapper = {{_base_.rates.joint}}
default_hooks = dict(checkpoint={{_base_.budget.joint.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

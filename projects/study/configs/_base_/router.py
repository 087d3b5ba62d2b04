_base_ = ["../../../../configs/_base_/stages/router.py", "./study.py"]
checkpoint_dir = {{_base_.folder}}
init_from = dict(
    file="experts_joint_best.pth",
    command=_base_.train + "/joint.py",
)
model = dict(
    backbone={{_base_.vit_backbone}},
    experts=dict(zoomnet={{_base_.zoomnet}}),
    combiner=dict(learn_temperature=True),
)
train_dataloader = dict(dataset=dict(split=dict(use=("router",))))
train_cfg = {{_base_.budget.router.train_cfg}}
optim_wrapper = {{_base_.rates.router}}
default_hooks = dict(checkpoint={{_base_.budget.router.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

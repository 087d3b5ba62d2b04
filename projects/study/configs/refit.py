# Each expert of joint fitted again to the backbone as it ended; the mixture is uniform.
_base_ = ["../../../configs/_base_/stages/refit.py", "./_base_/study.py"]
checkpoint_dir = {{_base_.folder}}
init_from = dict(command=_base_.train + "/joint.py")
model = dict(
    backbone={{_base_.vit_backbone}},
    experts=dict(zoomnet={{_base_.zoomnet}}),
)
train_cfg = {{_base_.budget.refit.train_cfg}}
optim_wrapper = {{_base_.rates.refit}}
default_hooks = dict(
    checkpoint={{_base_.budget.refit.checkpoint}},
    best=dict(name="experts_refit"),
)
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

_base_ = ["../../../../configs/_base_/stages/refit.py", "./mix.py"]
checkpoint_dir = "checkpoints_moe/study/mix"
init_from = dict(command="python tools/train.py projects/study/configs/mix_joint.py")
model = dict(
    backbone={{_base_.vit_backbone}},
    experts=dict(zoomnet={{_base_.zoomnet}}),
)
train_cfg = {{_base_.budget.refit.train_cfg}}
optim_wrapper = {{_base_.rates.refit}}
default_hooks = dict(checkpoint={{_base_.budget.refit.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

# Stage 1 with late blocks of the experts' own; weights of the last epoch.
_base_ = ["../../../configs/_base_/stages/joint.py", "./_base_/camo.py", "./_base_/own.py"]
checkpoint_dir = "checkpoints_moe/camo"
model = {{_base_.own_joint}}
train_cfg = dict(max_epochs=30, val_interval=30)
optim_wrapper = {{_base_.rates.experts}}
default_hooks = dict(
    best=dict(name="own_joint"), checkpoint={{_base_.checkpoint}}, warmup=dict(epochs=0, ramp=0)
)
env_cfg = dict(cudnn_benchmark=False)

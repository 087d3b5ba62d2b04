# Stage 1 with image scales of their own.
_base_ = ["./_base_/joint.py"]
train_cfg = dict(max_epochs=30, val_interval=15)
default_hooks = dict(best=dict(name="experts_joint"))

# Stage 1 with the same heads at one scale, 560 px: what the scales are worth. Without ZoomNet,
# which has three by its design.
_base_ = ["./_base_/joint.py"]
model = dict(experts=dict(pranet=dict(input_scale=1.0), sinet=dict(input_scale=1.0), zoomnet=None))
train_cfg = dict(max_epochs=30, val_interval=15)
default_hooks = dict(best=dict(name="experts_one_scale"))

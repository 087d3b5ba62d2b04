# A plain head at 560 px, rates and widths of own_joint.py: held_2, 4 and 6 hold first blocks.
_base_ = ["./plain_560.py"]
model = dict(backbone=dict(channels=(64, 128, 160, 192)))
train_cfg = dict(max_epochs=7, val_interval=7)
optim_wrapper = {{_base_.rates.held}}
default_hooks = dict(best=dict(name="held_0"))

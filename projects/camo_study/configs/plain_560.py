# A plain head at 560 px, as long as the mixture's experts learn.
_base_ = ["./_base_/plain.py"]
train_cfg = dict(max_epochs=40, val_interval=20)
default_hooks = dict(best=dict(name="plain_560"))

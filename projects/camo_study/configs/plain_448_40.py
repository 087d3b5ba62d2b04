# A plain head at 448 px, as long as the mixture's experts learn; the weights of its last epoch.
_base_ = ["./plain_448.py"]
train_cfg = dict(max_epochs=40, val_interval=40)
default_hooks = dict(best=dict(name="plain_448_40"))

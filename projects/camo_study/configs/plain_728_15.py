# plain_728 for 15 epochs, the weights of its last.
_base_ = ["./plain_728.py"]
train_cfg = dict(max_epochs=15, val_interval=15)
default_hooks = dict(best=dict(name="plain_728_15"))

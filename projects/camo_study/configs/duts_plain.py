# A plain head on salient objects, as duts_fpn.py without blocks that are held.
_base_ = ["./plain_560.py"]
duts = dict(data_root="data/growing/duts", name="DUTS")
train_cfg = dict(max_epochs=15, val_interval=15)
train_dataloader = dict(dataset=duts)
val_dataloader = dict(dataset=duts)
default_hooks = dict(best=dict(name="duts_plain"))

# Pretraining on salient objects: 1,000 images of DUTS of at most 352 px, as
# projects/growing_mixture prepares them.
_base_ = ["./apart_fpn.py"]
duts = dict(data_root="data/growing/duts", name="DUTS")
train_cfg = dict(max_epochs=15, val_interval=15)
train_dataloader = dict(dataset=duts)
val_dataloader = dict(dataset=duts)
default_hooks = dict(best=dict(name="duts_fpn"))

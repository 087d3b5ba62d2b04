# Stage 1 on salient objects, as duts_fpn.py: what joint_duts.py starts from.
_base_ = ["./_base_/joint.py"]
duts = dict(data_root="data/growing/duts", name="DUTS")
train_cfg = dict(max_epochs=15, val_interval=15)
train_dataloader = dict(dataset=duts)
val_dataloader = dict(dataset=duts)
default_hooks = dict(best=dict(name="duts_joint"))

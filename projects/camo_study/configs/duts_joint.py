# Pretraining on salient objects, 10 epochs: what joint_duts.py starts from.
_base_ = ["./_base_/joint.py"]
train_cfg = dict(max_epochs=10, val_interval=10)
train_dataloader = dict(dataset={{_base_.duts}})
val_dataloader = dict(dataset={{_base_.duts}})
default_hooks = dict(best=dict(name="duts_joint"))

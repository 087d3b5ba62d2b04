# One model of all three domains.
_base_ = ["./_base_/lone.py"]
train_dataloader = dict(dataset=dict(datasets={{_base_.training.everything}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.all}}))
default_hooks = dict(best=dict(name="everything"))

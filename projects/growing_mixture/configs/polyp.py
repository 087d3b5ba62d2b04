# A specialist of one domain, on a backbone that is held, so that specialists fit together.
_base_ = ["./_base_/lone.py"]
model = dict(frozen=("backbone",), experts=dict(_delete_=True, polyp={{_base_.specialist}}))
train_dataloader = dict(dataset=dict(datasets={{_base_.training.polyp}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.polyp}}))
default_hooks = dict(best=dict(name="polyp"))

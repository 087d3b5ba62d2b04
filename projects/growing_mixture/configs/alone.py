# A model of polyps alone, all of it trained: what the new expert of grown.py is held against.
_base_ = ["./_base_/lone.py"]
train_dataloader = dict(dataset=dict(datasets={{_base_.training.alone}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.polyp}}))
default_hooks = dict(best=dict(name="alone"))

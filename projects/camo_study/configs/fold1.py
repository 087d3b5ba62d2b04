# Copy 1: trained on half 0 of the training images, tested on half 1.
_base_ = ["./_base_/fold.py"]
train_dataloader = dict(dataset=dict(split=dict(fold=1)))
test_dataloader = dict(dataset=dict(datasets=dict(CAMO=dict(split=dict(fold=1)))))
default_hooks = dict(best=dict(name="fold1"))

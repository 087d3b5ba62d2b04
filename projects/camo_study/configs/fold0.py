# Copy 0: trained on half 1 of the training images, tested on half 0.
_base_ = ["./_base_/fold.py"]
train_dataloader = dict(dataset=dict(split=dict(fold=0)))
test_dataloader = dict(dataset=dict(datasets=dict(CAMO=dict(split=dict(fold=0)))))
default_hooks = dict(best=dict(name="fold0"))

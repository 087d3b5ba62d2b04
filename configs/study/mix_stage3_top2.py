# mix_stage3 where the mixture is made of the two chosen experts in training, too.
_base_ = ["./_base_/mix_stage3.py"]
model = dict(train_top_k=None)
default_hooks = dict(best=dict(name="ensemble_top2"))

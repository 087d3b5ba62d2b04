# stage3 without the experts' own losses.
_base_ = ["./_base_/stage3.py"]
model = dict(expert_loss_weight=0.0)
default_hooks = dict(best=dict(name="ensemble_no_expert_loss"))

# joint from the pretrained weights instead of from warm, for more epochs.
_base_ = ["./_base_/joint.py"]
init_from = None
train_cfg = {{_base_.budget.cold.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.cold.checkpoint}},
    best=dict(name="experts_joint_cold"),
)

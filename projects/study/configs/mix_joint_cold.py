# mix_joint from the pretrained weights instead of from mix_warm, for more epochs.
_base_ = ["./_base_/mix_joint.py"]
init_from = None
train_cfg = {{_base_.budget.cold.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.cold.checkpoint}},
    best=dict(name="experts_joint_cold"),
)

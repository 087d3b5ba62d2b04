# joint_cold on EfficientNet-Lite2.
_base_ = ["./_base_/joint.py"]
init_from = None
model = dict(backbone={{_base_.lite2_backbone}})
train_cfg = {{_base_.budget.cold.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.cold.checkpoint}},
    best=dict(name="experts_joint_lite2"),
)

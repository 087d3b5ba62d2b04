# mix_joint on EfficientNet-Lite2.
_base_ = ["./_base_/mix_joint.py"]
model = dict(backbone={{_base_.lite2_backbone}})
default_hooks = dict(best=dict(name="experts_joint_lite2"))

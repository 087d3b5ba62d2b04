# joint with a loss on the uniform mixture beside the experts' own.
_base_ = ["./_base_/joint.py"]
model = dict(mixture_loss=dict(type="StructureLoss"))
default_hooks = dict(best=dict(name="experts_joint_mixture"))

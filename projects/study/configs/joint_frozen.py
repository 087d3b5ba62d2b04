# joint on a backbone that is not tuned; the pyramid above it learns.
_base_ = ["./_base_/joint.py"]
init_from = None
model = dict(frozen=("backbone.body",))
default_hooks = dict(best=dict(name="experts_joint_frozen"))

# Stage 1: the four experts on one backbone; its mixture is uniform.
_base_ = ["./_base_/joint.py"]
default_hooks = dict(best=dict(name="experts_joint"))

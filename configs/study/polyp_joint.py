# Stage 1: the four experts on one backbone; its mixture is uniform.
_base_ = ["./_base_/polyp_stage1.py"]
default_hooks = dict(best=dict(name="experts_joint"))

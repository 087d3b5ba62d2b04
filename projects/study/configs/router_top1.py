# Stage 2: a router that chooses 1 of the four experts of joint.
_base_ = ["./_base_/router.py"]
model = dict(top_k=1)
default_hooks = dict(best=dict(name="router_top1"))

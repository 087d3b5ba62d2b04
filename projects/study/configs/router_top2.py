# Stage 2: a router that chooses 2 of the four experts of joint.
_base_ = ["./_base_/router.py"]
model = dict(top_k=2)
default_hooks = dict(best=dict(name="router_top2"))

# Stage 2: a router that chooses 4 of the four experts of joint.
_base_ = ["./_base_/router.py"]
model = dict(top_k=4)
default_hooks = dict(best=dict(name="router_top4"))

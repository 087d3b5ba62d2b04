# Stage 3 from router_top2: everything learns.
_base_ = ["./_base_/stage3.py"]
default_hooks = dict(best=dict(name="ensemble"))

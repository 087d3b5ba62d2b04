# Stage 3 from polyp_router_top2: everything learns.
_base_ = ["./_base_/polyp_stage3.py"]
default_hooks = dict(best=dict(name="ensemble"))

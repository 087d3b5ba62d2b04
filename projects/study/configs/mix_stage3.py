# Stage 3 from mix_router_top2: everything learns.
_base_ = ["./_base_/mix_stage3.py"]
default_hooks = dict(best=dict(name="ensemble"))

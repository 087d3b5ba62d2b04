# Stage 1, separate: one expert with a backbone of its own.
_base_ = [
    "../models/moe_pvt_v2_b2.py",
    "../schedules/adamw_cosine.py",
    "../default_runtime.py",
]
model = dict(router=dict(type="UniformRouter"), expert_loss_weight=1.0)

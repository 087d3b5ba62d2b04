# Stage 1, joint: all experts on one backbone, one loss per expert.
_base_ = ["./expert.py"]
model = dict(evaluate_all_experts=True)
default_hooks = dict(best=dict(name="experts_joint"))

# Stage 1, joint: all experts on one backbone, one loss per expert.
_base_ = ["./expert.py"]
model = dict(
    # One expert's forward and backward pass after another: the memory of one head.
    expert_execution="sequential",
    evaluate_all_experts=True,
)
# The pretrained backbone is held for an epoch, while the heads are still random; then it learns at
# a tenth of their rate (adamw_cosine.py). 0 switches that off.
default_hooks = dict(
    best=dict(name="experts_joint"), warmup=dict(type="BackboneWarmupHook", epochs=1, ramp=1)
)

# Stage 3 on the four.
_base_ = ["./stage3.py", "./_base_/own.py"]
init_from = dict(
    file="own_router_best.pth",
    command="python tools/train.py projects/camo_study/configs/own_router.py",
)
model = dict(
    backbone={{_base_.own_backbone}},
    experts={{_base_.own_experts}},
    router_truth={{_base_.kept_truth}},
)
train_cfg = dict(max_epochs=8, val_interval=8)
default_hooks = dict(best=dict(name="own_stage3"))

# Stage 2 on the four.
_base_ = ["./router.py", "./_base_/own.py"]
init_from = dict(
    file="own_joint_best.pth",
    command="python tools/train.py projects/camo_study/configs/own_joint.py",
)
model = dict(
    backbone={{_base_.own_backbone}},
    experts={{_base_.own_experts}},
    router_truth={{_base_.kept_truth}},
)
train_cfg = dict(val_interval=16)
default_hooks = dict(best=dict(name="own_router"))

# Stage 2 from joint_lite2.
_base_ = ["./_base_/router.py"]
init_from = dict(
    file="experts_joint_lite2_best.pth",
    command=_base_.train + "/joint_lite2.py",
)
model = dict(backbone={{_base_.lite2_backbone}})
default_hooks = dict(best=dict(name="router_lite2"))

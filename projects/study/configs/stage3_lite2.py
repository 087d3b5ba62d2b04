# Stage 3 from router_lite2.
_base_ = ["./_base_/stage3.py"]
init_from = dict(
    file="router_lite2_best.pth",
    command=_base_.train + "/router_lite2.py",
)
model = dict(backbone={{_base_.lite2_backbone}})
default_hooks = dict(best=dict(name="ensemble_lite2"))

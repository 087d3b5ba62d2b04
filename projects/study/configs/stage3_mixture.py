# Stage 3 from router_mixture.
_base_ = ["./_base_/stage3.py"]
init_from = dict(
    file="router_mixture_best.pth",
    command=_base_.train + "/router_mixture.py",
)
default_hooks = dict(best=dict(name="ensemble_mixture"))

# router_top2 from joint_mixture.
_base_ = ["./_base_/router.py"]
init_from = dict(
    file="experts_joint_mixture_best.pth",
    command=_base_.train + "/joint_mixture.py",
)
default_hooks = dict(best=dict(name="router_mixture"))

# mix_router_top2 from mix_joint_mixture.
_base_ = ["./_base_/mix_router.py"]
init_from = dict(
    file="experts_joint_mixture_best.pth",
    command="python tools/train.py projects/study/configs/mix_joint_mixture.py",
)
default_hooks = dict(best=dict(name="router_mixture"))

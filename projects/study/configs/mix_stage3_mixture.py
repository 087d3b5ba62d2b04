# Stage 3 from mix_router_mixture.
_base_ = ["./_base_/mix_stage3.py"]
init_from = dict(
    file="router_mixture_best.pth",
    command="python tools/train.py projects/study/configs/mix_router_mixture.py",
)
default_hooks = dict(best=dict(name="ensemble_mixture"))

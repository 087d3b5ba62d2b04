# Stage 3 from mix_router_pyramid, the mixture of two experts.
_base_ = ["./_base_/mix_stage3.py"]
init_from = dict(
    file="router_pyramid_best.pth",
    command="python tools/train.py configs/study/mix_router_pyramid.py",
)
model = dict(combiner=dict(_delete_=True, type="PyramidCombiner", learn_temperature=True))
default_hooks = dict(best=dict(name="ensemble_pyramid"))

# polyp_stage3 from polyp_router_temperature.
_base_ = ["./_base_/polyp_stage3.py"]
init_from = dict(
    file="router_temperature_best.pth",
    command="python tools/train.py configs/study/polyp_router_temperature.py",
)
model = dict(combiner=dict(learn_temperature=True))
default_hooks = dict(best=dict(name="ensemble_temperature"))

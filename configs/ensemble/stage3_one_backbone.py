# configs/ensemble/stage3.py after configs/router/stage2_one_backbone.py.
_base_ = ["./stage3.py"]
init_from = dict(
    file="router_one_backbone_best.pth",
    command="codmoe train configs/router/stage2_one_backbone.py --gpus 2",
)
default_hooks = dict(best=dict(name="ensemble_one_backbone"))

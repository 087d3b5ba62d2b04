# configs/router/stage2.py on what configs/experts/refit_one_backbone.py leaves.
_base_ = ["./stage2.py"]
init_from = dict(
    file="experts_one_backbone_best.pth",
    command="codmoe train configs/experts/refit_one_backbone.py --gpus 2",
)
default_hooks = dict(best=dict(name="router_one_backbone"))

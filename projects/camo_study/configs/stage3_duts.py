# stage3.py after router_duts.py.
_base_ = ["./stage3.py"]
init_from = dict(
    file="router_duts_best.pth",
    command="python projects/camo_study/run.py --rows router_duts",
)
model = dict(router_truth={{_base_.kept_truth}})
train_cfg = dict(max_epochs=8, val_interval=4)
default_hooks = dict(best=dict(name="stage3_duts"))

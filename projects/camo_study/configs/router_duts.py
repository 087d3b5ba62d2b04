# router.py after joint_duts.py; what copies by folds say of the experts is that of joint.py's.
_base_ = ["./router.py"]
init_from = dict(
    file="joint_duts_best.pth",
    command="python projects/camo_study/run.py --rows joint_duts",
)
model = dict(router_truth={{_base_.kept_truth}})
default_hooks = dict(best=dict(name="router_duts"))

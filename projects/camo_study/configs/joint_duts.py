# joint.py from weights that have learnt salient objects.
_base_ = ["./joint.py"]
init_from = dict(
    file="duts_joint_best.pth",
    command="python projects/camo_study/run.py --rows duts_joint",
)
default_hooks = dict(best=dict(name="joint_duts"))

# apart_fpn.py from weights that have learnt salient objects.
_base_ = ["./apart_fpn.py"]
init_from = dict(
    file="duts_fpn_best.pth",
    command="python projects/camo_study/run.py --rows duts_fpn",
)
default_hooks = dict(best=dict(name="apart_fpn_duts"))

# plain_840.py from weights that have learnt salient objects.
_base_ = ["./plain_840.py"]
init_from = dict(
    file="duts_plain_best.pth",
    command="python projects/camo_study/run.py --rows duts_plain",
)
default_hooks = dict(best=dict(name="plain_840_duts"))

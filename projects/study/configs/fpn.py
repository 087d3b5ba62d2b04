# One plain FPN head on a backbone of its own: the line to beat.
_base_ = ["./_base_/fpn.py"]
default_hooks = dict(best=dict(name="fpn"))

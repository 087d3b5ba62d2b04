# One plain FPN head on a backbone of its own: the line to beat.
_base_ = ["./_base_/polyp_fpn.py"]
model = dict(experts=dict(_delete_=True, fpn=dict(type="FPNExpert")))
default_hooks = dict(best=dict(name="fpn"))

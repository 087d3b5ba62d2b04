# UJSCExpert alone, on a backbone of its own.
_base_ = ["./_base_/single.py"]
model = dict(experts=dict(_delete_=True, ujsc=dict(type="UJSCExpert")))
default_hooks = dict(best=dict(name="expert_ujsc"))

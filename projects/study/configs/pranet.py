# PraNetExpert alone, on a backbone of its own.
_base_ = ["./_base_/single.py"]
model = dict(experts=dict(_delete_=True, pranet=dict(type="PraNetExpert")))
default_hooks = dict(best=dict(name="expert_pranet"))

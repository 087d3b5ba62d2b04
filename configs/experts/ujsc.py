_base_ = ["../_base_/stages/expert.py", "../_base_/datasets/cod10k_v3.py"]
model = dict(experts=dict(_delete_=True, ujsc=dict(type="UJSCExpert")))
default_hooks = dict(best=dict(name="expert_ujsc"))

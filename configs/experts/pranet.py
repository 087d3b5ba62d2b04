_base_ = ["../_base_/stages/expert.py", "../_base_/datasets/cod10k_v3.py"]
model = dict(
    experts=dict(_delete_=True, pranet=dict(type="PraNetExpert", residual_norm=False)),
)
default_hooks = dict(best=dict(name="expert_pranet"))

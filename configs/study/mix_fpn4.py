# Four plain FPN heads with a uniform mixture, from the same start as the experts and for the epochs
# of their stages: what four heads alone give.
_base_ = ["./_base_/mix_single.py"]
model = dict(
    experts=dict(
        _delete_=True,
        fpn_a=dict(type="FPNExpert"),
        fpn_b=dict(type="FPNExpert"),
        fpn_c=dict(type="FPNExpert"),
        fpn_d=dict(type="FPNExpert"),
    ),
)
train_cfg = {{_base_.budget.after.train_cfg}}
default_hooks = dict(
    checkpoint={{_base_.budget.after.checkpoint}},
    best=dict(name="fpn4"),
)

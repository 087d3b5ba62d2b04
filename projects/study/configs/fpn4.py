# Four plain FPN heads with a uniform mixture, from the same start as the experts and for the epochs
# of their stages: what four heads alone give.
_base_ = ["./_base_/single.py"]
model = dict(
    experts=dict(
        _delete_=True,
        fpn_a=dict(type="FPNExpert"),
        fpn_b=dict(type="FPNExpert"),
        fpn_c=dict(type="FPNExpert"),
        fpn_d=dict(type="FPNExpert"),
    ),
)
default_hooks = dict(best=dict(name="fpn4"))

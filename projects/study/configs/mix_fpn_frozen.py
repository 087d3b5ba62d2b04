# mix_fpn on a backbone that is not tuned; the pyramid above it learns.
_base_ = ["./_base_/mix_fpn.py"]
model = dict(
    frozen=("backbone.body",),
    experts=dict(_delete_=True, fpn=dict(type="FPNExpert")),
)
default_hooks = dict(best=dict(name="fpn_frozen"))

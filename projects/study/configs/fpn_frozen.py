# fpn on a backbone that is not tuned; the pyramid above it learns.
_base_ = ["./_base_/fpn.py"]
model = dict(frozen=("backbone.body",))
default_hooks = dict(best=dict(name="fpn_frozen"))

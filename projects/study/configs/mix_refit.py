# Each expert of mix_joint fitted again to the backbone as it ended; the mixture is uniform.
_base_ = ["./_base_/mix_refit.py"]
default_hooks = dict(best=dict(name="experts_refit"))

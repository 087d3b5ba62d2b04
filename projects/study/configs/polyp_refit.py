# Each expert of polyp_joint fitted again to the backbone as it ended; the mixture is uniform.
_base_ = ["./_base_/polyp_refit.py"]
default_hooks = dict(best=dict(name="experts_refit"))

# As fold1.py, for the experts of own_joint.py.
_base_ = ["./fold1.py", "./_base_/own.py"]
model = {{_base_.own_joint}}
default_hooks = dict(best=dict(name="own_fold1"))

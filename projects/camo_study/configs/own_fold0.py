# As fold0.py, for the experts of own_joint.py.
_base_ = ["./fold0.py", "./_base_/own.py"]
model = {{_base_.own_joint}}
default_hooks = dict(best=dict(name="own_fold0"))

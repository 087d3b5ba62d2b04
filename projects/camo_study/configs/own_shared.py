# The same experts at the same scales, all blocks shared: what blocks of their own are worth.
_base_ = ["./own_joint.py"]
model = dict(
    experts=dict(pranet=dict(own_blocks=0), sinet=dict(own_blocks=0), ujsc=dict(own_blocks=0))
)
default_hooks = dict(best=dict(name="own_shared"))

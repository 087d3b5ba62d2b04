# stage3 where the mixture is made of the two chosen experts in training, too,
# and the router is kept balanced.
_base_ = ["./_base_/stage3.py"]
model = dict(
    train_top_k=None,
    routing_losses=dict(balance=dict(type="LoadBalanceLoss", weight=0.01)),
)
default_hooks = dict(best=dict(name="ensemble_top2"))

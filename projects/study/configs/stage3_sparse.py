# stage3 where an expert learns from the images that were routed to it alone.
_base_ = ["./_base_/stage3.py"]
model = dict(
    train_dispatch="sparse",
    train_top_k=None,
    routing_losses=dict(balance=dict(type="LoadBalanceLoss", weight=0.01)),
)
default_hooks = dict(best=dict(name="ensemble_sparse"))

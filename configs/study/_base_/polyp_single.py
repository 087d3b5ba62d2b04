# A model without a router may learn from the router's images too, as stage 3 does.
_base_ = ["./polyp_stage1.py"]
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))

_base_ = ["../../../../configs/_base_/stages/expert.py", "./study.py"]
checkpoint_dir = {{_base_.folder}}
init_from = {{_base_.warm}}
# A model without a router may learn from the router's images too, as stage 3 does.
model = dict(
    backbone={{_base_.vit_backbone}},
    expert_execution="together",
    checkpoint_backbone=None,
)
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_graphs = {{_base_.graphs}}
# As long as the experts of the ensemble learn, in stages 1 and 3.
train_cfg = {{_base_.budget.after.train_cfg}}
optim_wrapper = {{_base_.rates.after}}
default_hooks = dict(checkpoint={{_base_.budget.after.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

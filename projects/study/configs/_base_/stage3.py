_base_ = ["../../../../configs/_base_/stages/ensemble.py", "./study.py"]
checkpoint_dir = {{_base_.folder}}
init_from = dict(
    file="router_top2_best.pth",
    command=_base_.train + "/router_top2.py",
)
model = dict(
    backbone={{_base_.vit_backbone}},
    experts=dict(zoomnet={{_base_.zoomnet}}),
    combiner=dict(learn_temperature=True),
    # Everything kept, nothing computed twice: 21 GB, and quicker.
    expert_execution="together",
    checkpoint_backbone=None,
)
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_cfg = {{_base_.budget.stage3.train_cfg}}
optim_wrapper = {{_base_.rates.stage3}}
default_hooks = dict(checkpoint={{_base_.budget.stage3.checkpoint}})
# Its trials take a minute for so many shapes: a large part of such short runs.
env_cfg = dict(cudnn_benchmark=False)

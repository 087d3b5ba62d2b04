_base_ = ["../../_base_/stages/ensemble.py", "./mix.py"]
checkpoint_dir = "checkpoints_moe/study/mix"
init_from = dict(
    file="router_top2_best.pth",
    command="python tools/train.py configs/study/mix_router_top2.py",
)
model = dict(backbone={{_base_.vit_backbone}})
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_cfg = {{_base_.budget.stage3.train_cfg}}
optim_wrapper = {{_base_.budget.stage3.optim_wrapper}}
default_hooks = dict(checkpoint={{_base_.budget.stage3.checkpoint}})

# Stage 3 on the four.
_base_ = ["../../../configs/_base_/stages/ensemble.py", "./_base_/camo.py", "./_base_/own.py"]
checkpoint_dir = "checkpoints_moe/camo"
init_from = dict(
    file="own_router_best.pth",
    command="python tools/train.py projects/camo_study/configs/own_router.py",
)
model = dict(
    backbone={{_base_.own_backbone}},
    experts={{_base_.own_experts}},
    combiner=dict(learn_temperature=True),
    router_truth=dict(files=("results/own_fold0.json", "results/own_fold1.json"), centred=True),
    routing_losses=dict(distill=dict(type="ExpertIoUDistillation", weight=1.0, tau=0.05)),
    expert_loss_normalization="maps",
    expert_execution="together",
    checkpoint_backbone=None,
)
train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = {{_base_.rates.stage3}}
default_hooks = dict(best=dict(name="own_stage3"), checkpoint={{_base_.checkpoint}})
env_cfg = dict(cudnn_benchmark=False)

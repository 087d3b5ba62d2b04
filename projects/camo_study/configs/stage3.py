# Stage 3: everything learns, with a loss on the mixture and a small weight of the experts' own.
_base_ = ["../../../configs/_base_/stages/ensemble.py", "./_base_/camo.py", "./_base_/mixture.py"]
checkpoint_dir = "checkpoints_moe/camo"
init_from = dict(
    file="router_best.pth",
    command="python tools/train.py projects/camo_study/configs/router.py",
)
model = dict(
    backbone={{_base_.dinov2_small}},
    experts={{_base_.mixture_later}},
    combiner=dict(learn_temperature=True),
    router_truth=dict(files=("results/fold0.json", "results/fold1.json"), centred=True),
    routing_losses=dict(distill=dict(type="ExpertIoUDistillation", weight=1.0, tau=0.05)),
    expert_loss_normalization="maps",
    expert_execution="together",
    checkpoint_backbone=None,
)
train_cfg = dict(max_epochs=10, val_interval=5)
optim_wrapper = {{_base_.rates.stage3}}
default_hooks = dict(best=dict(name="ensemble"), checkpoint={{_base_.checkpoint}})
env_cfg = dict(cudnn_benchmark=False)

# Stage 2 on the four.
_base_ = ["../../../configs/_base_/stages/router.py", "./_base_/camo.py", "./_base_/own.py"]
checkpoint_dir = "checkpoints_moe/camo"
init_from = dict(
    file="own_joint_best.pth",
    command="python tools/train.py projects/camo_study/configs/own_joint.py",
)
model = dict(
    backbone={{_base_.own_backbone}},
    experts={{_base_.own_experts}},
    combiner=dict(learn_temperature=True),
    router_truth=dict(files=("results/own_fold0.json", "results/own_fold1.json"), centred=True),
)
train_cfg = dict(max_epochs=16, val_interval=16)
optim_wrapper = {{_base_.rates.router}}
default_hooks = dict(
    best=dict(name="own_router"),
    checkpoint={{_base_.checkpoint}},
    frozen_cache=dict(limit_gb=48.0, views=3),
)
env_cfg = dict(cudnn_benchmark=False)

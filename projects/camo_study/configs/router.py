# Stage 2: a router of top-2, on the images of stage 1, told by copies that have not seen them how
# good each expert is on each.
_base_ = ["../../../configs/_base_/stages/router.py", "./_base_/camo.py", "./_base_/mixture.py"]
checkpoint_dir = "checkpoints_moe/camo"
init_from = dict(
    file="experts_joint_best.pth",
    command="python tools/train.py projects/camo_study/configs/joint.py",
)
model = dict(
    backbone={{_base_.dinov2_small}},
    experts={{_base_.mixture}},
    combiner=dict(learn_temperature=True),
    # Centred: the copies had a sixth of the steps, in which some experts learn faster than others.
    router_truth=dict(files=("results/fold0.json", "results/fold1.json"), centred=True),
)
train_cfg = dict(max_epochs=16, val_interval=8)
optim_wrapper = {{_base_.rates.router}}
default_hooks = dict(
    best=dict(name="router"),
    checkpoint={{_base_.checkpoint}},
    frozen_cache=dict(limit_gb=48.0, views=3),
)
env_cfg = dict(cudnn_benchmark=False)

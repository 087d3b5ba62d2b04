# A plain FPN head on a backbone of its own: the line to beat.
_base_ = ["../../../../configs/_base_/stages/expert.py", "./camo.py"]
checkpoint_dir = "checkpoints_moe/camo"
model = dict(
    backbone={{_base_.dinov2_small}},
    experts=dict(_delete_=True, fpn=dict(type="FPNExpert", channels=128)),
    checkpoint_backbone=None,
)
optim_wrapper = {{_base_.rates.plain}}
default_hooks = dict(checkpoint={{_base_.checkpoint}})
env_cfg = dict(cudnn_benchmark=False)

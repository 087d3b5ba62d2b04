# Stage 1: all experts on one backbone, with a loss on their mean beside their own.
_base_ = ["../../../../configs/_base_/stages/joint.py", "./camo.py", "./mixture.py"]
checkpoint_dir = "checkpoints_moe/camo"
model = dict(
    backbone={{_base_.dinov2_small}},
    experts={{_base_.mixture}},
    mixture_loss=dict(type="StructureLoss"),
    # An expert with five supervised maps would steer the backbone more than one with a single map.
    expert_loss_normalization="maps",
    # Everything kept, nothing computed twice.
    expert_execution="together",
    checkpoint_backbone=None,
)
optim_wrapper = {{_base_.rates.experts}}
default_hooks = dict(checkpoint={{_base_.checkpoint}}, warmup=dict(ramp=0))
env_cfg = dict(cudnn_benchmark=False)

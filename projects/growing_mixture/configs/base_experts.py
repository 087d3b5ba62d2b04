# The mixture that is to grow: four experts on the old domains, as small/stage1.
_base_ = ["../../../configs/_base_/stages/joint.py", "./_base_/growing.py"]
checkpoint_dir = "checkpoints_moe/growing"
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    expert_execution="together",
    checkpoint_backbone=None,
)
train_cfg = dict(max_epochs=16, val_interval=8)
# A step of four decoders waits for their host: 32 images take hardly longer than 16.
train_dataloader = dict(batch_size=32, dataset=dict(datasets={{_base_.training.old_experts}}))
val_dataloader = dict(dataset=dict(datasets={{_base_.validation.old}}))
optim_wrapper = {{_base_.rates}}
default_hooks = dict(
    best=dict(name="base_experts"), checkpoint={{_base_.checkpoint}}, warmup=dict(epochs=0, ramp=0)
)
env_cfg = dict(cudnn_benchmark=False)

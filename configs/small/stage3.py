# Stage 3 of the small ensemble; its best weights become codmoe/weights/small_ensemble.safetensors.
_base_ = [
    "../_base_/stages/ensemble.py",
    "../_base_/datasets/freely_licensed.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "checkpoints_moe/small"
init_from = dict(command="codmoe train configs/small/stage2.py")
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    router=dict(width=64, fallback=4.0),
    expert_execution="together",
    checkpoint_backbone=None,
)
# Other seeds: images that no stage has seen, in the same photographs.
train_dataloader = dict(
    dataset=dict(
        datasets=dict(
            Complete=dict(seed=10),
            People=dict(seed=14),
            Hidden=dict(seed=11),
            Faint=dict(seed=12),
            Plain=dict(seed=13),
        ),
    ),
)
train_cfg = dict(max_epochs=4, val_interval=2)
default_hooks = dict(familiarity=dict(type="FamiliarityHook"))
env_cfg = dict(cudnn_benchmark=False)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=0.1)}),
)

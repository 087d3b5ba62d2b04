# Stage 2 of the small ensemble, on images and photographs that the experts have not seen.
_base_ = [
    "../_base_/stages/router.py",
    "../_base_/datasets/freely_licensed.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "checkpoints_moe/small"
init_from = dict(command="codmoe train configs/small/stage1.py")
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    router=dict(width=64, fallback=4.0),
)
train_dataloader = dict(
    dataset=dict(
        datasets=dict(
            Complete=dict(part="router", length=1600),
            People=dict(part="router", length=800),
            Hidden=dict(part="router", length=200),
            Faint=dict(part="router", length=200),
            Plain=dict(part="router", length=200),
        ),
    ),
)
train_cfg = dict(max_epochs=6, val_interval=2)
# Two augmented views of an image are made once, and the frozen parts' maps of them kept.
default_hooks = dict(
    frozen_cache=dict(views=2, limit_gb=60.0), familiarity=dict(type="FamiliarityHook")
)
env_cfg = dict(cudnn_benchmark=False)
optim_wrapper = dict(optimizer=dict(lr=5e-4))

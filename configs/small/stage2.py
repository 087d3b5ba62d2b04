# Stage 2 of the small ensemble, on images and photographs that the experts have not seen.
_base_ = [
    "../_base_/stages/router.py",
    "../_base_/datasets/freely_licensed.py",
    "../_base_/models/small.py",
]
checkpoint_dir = "checkpoints_moe/small"
init_from = dict(command="python tools/train.py configs/small/stage1.py")
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    router=dict(width=64),
)
train_dataloader = dict(
    dataset=dict(
        datasets=dict(
            Hidden=dict(part="router", length=1200),
            Faint=dict(part="router", length=1600),
            Plain=dict(part="router", length=1200),
            Photos=dict(part="router", length=2000),
        ),
    ),
)
train_cfg = dict(max_epochs=2)
env_cfg = dict(cudnn_benchmark=False)
optim_wrapper = dict(optimizer=dict(lr=5e-4))

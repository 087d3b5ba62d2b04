# configs/ensemble/stage3.py on PraNet's polyp benchmark, with a DINOv2-initialised ViT-S as
# backbone.
_base_ = [
    "../_base_/stages/ensemble.py",
    "../_base_/datasets/polyp.py",
    "../_base_/models/vit_small_dinov2.py",
]
checkpoint_dir = "checkpoints_moe/polyp_dinov2-s"
init_from = dict(command="codmoe train configs/router/stage2_polyp_dinov2-s.py")
model = dict(backbone={{_base_.vit_backbone}})
# The schedule is cut to half an hour on one GPU, whose batch is that of two; fewer epochs, so a
# higher rate than the real config's 5e-5.
train_dataloader = dict(
    batch_size=24, num_workers=12, dataset=dict(split=dict(use=("experts", "router")))
)
train_cfg = dict(max_epochs=8, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4))

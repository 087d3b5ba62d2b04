# configs/router/stage2.py on PraNet's polyp benchmark, with a DINOv2-initialised ViT-S as backbone.
_base_ = [
    "../_base_/stages/router.py",
    "../_base_/datasets/polyp.py",
    "../_base_/models/vit_small_dinov2.py",
]
checkpoint_dir = "checkpoints_moe/polyp_dinov2-s"
init_from = dict(command="codmoe train configs/experts/joint_polyp_dinov2-s.py")
model = dict(backbone={{_base_.vit_backbone}})
train_dataloader = dict(batch_size=24, num_workers=12, dataset=dict(split=dict(use=("router",))))
train_cfg = dict(max_epochs=10, val_interval=2)

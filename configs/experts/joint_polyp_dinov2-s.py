# configs/experts/joint.py on PraNet's polyp benchmark, with a DINOv2-initialised ViT-S as backbone.
_base_ = [
    "../_base_/stages/joint.py",
    "../_base_/datasets/polyp.py",
    "../_base_/models/vit_small_dinov2.py",
]
checkpoint_dir = "checkpoints_moe/polyp_dinov2-s"
model = dict(backbone={{_base_.vit_backbone}})
train_cfg = dict(max_epochs=36, val_interval=3)

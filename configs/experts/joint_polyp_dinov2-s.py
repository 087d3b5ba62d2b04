# configs/experts/joint.py on PraNet's polyp benchmark, with a DINOv2-initialised ViT-S as backbone.
_base_ = [
    "../_base_/stages/joint.py",
    "../_base_/datasets/polyp.py",
    "../_base_/models/vit_small_dinov2.py",
]
checkpoint_dir = "checkpoints_moe/polyp_dinov2-s"
model = dict(backbone={{_base_.vit_backbone}})
# The schedule is cut to half an hour on one GPU, whose batch is that of two.
train_dataloader = dict(batch_size=24, num_workers=12)
train_cfg = dict(max_epochs=24, val_interval=3)

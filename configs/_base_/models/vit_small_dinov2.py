# A plain ViT in place of the hierarchical backbone: model = dict(backbone={{_base_.vit_backbone}})
vit_backbone = dict(
    _delete_=True,
    type="ViTPyramid",
    name="vit_small_patch14_dinov2",
    image_size=448,  # 32 patches of 14 pixels
    layers=(2, 5, 8, 11),
    checkpoint="data/weights/vit_small_patch14_dinov2.fp16.safetensors",
)

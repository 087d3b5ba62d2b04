# A small convolutional backbone: model = dict(backbone={{_base_.lite2_backbone}})
lite2_backbone = dict(
    _delete_=True,
    type="TimmPyramid",
    name="tf_efficientnet_lite2",
    checkpoint="data/weights/tf_efficientnet_lite2.fp16.safetensors",
)

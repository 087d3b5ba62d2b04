# The ensemble that ships with the package: 27 M numbers, 28 MB as 8-bit weights.
# model = dict(backbone={{_base_.small_backbone}}, experts={{_base_.small_experts}})
small_backbone = dict(
    _delete_=True,
    type="ViTPyramid",
    name="vit_small_patch14_dinov2",  # DINOv2-initialised, Apache-2.0
    image_size=336,  # 24 patches of 14 pixels
    layers=(2, 5, 8, 11),
    channels=(48, 64, 96, 128),
    pretrained=False,
    checkpoint="data/weights/vit_small_patch14_dinov2.int8.safetensors",
)
# Four decoders that see two image scales between them: what sees the same pixels errs alike. The
# whole image is ZoomNet's largest scale here, so that its three cost 0.8 further passes, not 2.5.
small_experts = dict(
    sinet=dict(channels=32, output_stride=4),
    # With the norms that the weights in the package have.
    pranet=dict(
        channels=32, deep_channels=64, shallow_channels=64, output_stride=4, residual_norm=True
    ),
    zoomnet=dict(channels=32, input_scales=(0.5, 0.75, 1.0)),
    ujsc=dict(channels=32, input_scale=0.75),
)

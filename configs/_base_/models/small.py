# The ensemble that ships with the package: 9.7 M numbers, 19.6 MB in half precision.
# model = dict(backbone={{_base_.small_backbone}}, experts={{_base_.small_experts}})
small_backbone = dict(
    name="tf_efficientnet_lite0",  # ImageNet weights of timm, Apache-2.0
    pretrained=False,
    checkpoint="data/weights/tf_efficientnet_lite0.fp16.safetensors",
)
# SINet, UJSC and PraNet's decoder at their published width. Two things are narrower, for the four
# and a router are to fit into 20 MB: ZoomNet (published: 64) and PraNet's reverse attention at
# stride 32 (published: 256, which alone is 5 M).
small_experts = dict(
    sinet=dict(channels=32),
    pranet=dict(channels=32, deep_channels=64, shallow_channels=64),
    zoomnet=dict(channels=56),
    ujsc=dict(channels=32),
)

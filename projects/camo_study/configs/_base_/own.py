# Four single-scale experts of 13.5 to 16.5 M parameters (but for FPN) whose last six blocks of the
# ViT are their own; FPN has the backbone's, which the router reads, too. Scales are 560, 672 and
# 448 px; UJSC shares the first six blocks at 560 px with FPN.
own_backbone = dict(
    _delete_=True,
    type="ViTPyramid",
    name="vit_small_patch14_dinov2",
    image_size=518,
    layers=(2, 5, 8, 11),
    channels=(64, 128, 160, 192),
    checkpoint="data/weights/vit_small_patch14_dinov2.fp16.safetensors",
)
own_experts = dict(
    _delete_=True,
    fpn=dict(type="FPNExpert", channels=128),
    pranet=dict(
        type="PraNetExpert",
        channels=64,
        deep_channels=128,
        residual_norm=False,
        output_stride=4,
        input_scale=1.2,
        own_blocks=6,
    ),
    sinet=dict(type="SINetExpert", channels=64, output_stride=4, input_scale=0.8, own_blocks=6),
    ujsc=dict(type="UJSCExpert", channels=64, own_blocks=6),
)
# Without a loss on the mixture, which would make experts alike.
own_joint = dict(
    backbone=own_backbone,
    experts=own_experts,
    expert_loss_normalization="maps",
    expert_execution="together",
    checkpoint_backbone=None,
)

# Five experts that are trained apart, each with all but the first two of twelve blocks of its own:
# the embeddings and these two are held, so that the trained parts fit together unchanged. FPN has
# the backbone's blocks, which the router reads, too. Widths and scales are those of mixture.py.
apart_blocks = 10
apart_experts = dict(
    _delete_=True,
    fpn=dict(type="FPNExpert", channels=128),
    pranet=dict(
        type="PraNetExpert",
        channels=64,
        residual_norm=False,
        output_stride=4,
        input_scale=1.2,
        own_blocks=apart_blocks,
    ),
    sinet=dict(
        type="SINetExpert",
        channels=64,
        output_stride=4,
        input_scale=0.8,
        own_blocks=apart_blocks,
    ),
    ujsc=dict(type="UJSCExpert", channels=64, own_blocks=apart_blocks),
    zoomnet=dict(
        type="ZoomNetExpert",
        channels=64,
        input_scales=(0.4, 0.8, 1.2),
        segmentation_loss="structure",
        own_blocks=apart_blocks,
    ),
)
held = {
    f"backbone.body.{part}": dict(lr_mult=0.0)
    for part in ("patch_embed", "pos_embed", "cls_token", "blocks.0.", "blocks.1.")
}
apart_schedule = dict(max_epochs=40, val_interval=20)

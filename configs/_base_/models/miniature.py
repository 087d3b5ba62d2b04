# The same model small enough for two CPU cores: model = {{_base_.miniature}}
miniature = dict(
    backbone=dict(name="pvt_v2_b0", pretrained=False),
    experts=dict(
        sinet=dict(channels=16),
        pranet=dict(channels=16, deep_channels=32, shallow_channels=16),
        zoomnet=dict(channels=16),
        ujsc=dict(channels=16, confidence_channels=16),
    ),
)

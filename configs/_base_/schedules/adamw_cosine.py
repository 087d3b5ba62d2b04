# AdamW, one epoch of linear warm-up, then a cosine to 1 % of the rate over train_cfg.max_epochs.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=40, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type="OptimWrapper",  # AmpOptimWrapper where `amp` finds a GPU
    # One group for all parameters of equal settings; a checkpoint from before must be resumed with
    # DefaultOptimWrapperConstructor.
    constructor="MergedGroupsConstructor",
    optimizer=dict(type="AdamW", lr=3e-4, weight_decay=0.05),  # fused on GPUs
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        # The pretrained part of the backbone; what is new in a ViT's pyramid learns at the full
        # rate.
        custom_keys={
            "backbone.body": dict(lr_mult=0.1),
            # One number (learn_temperature=True): Adam moves it by the rate a step, decay to 1.
            "combiner.log_temperature": dict(lr_mult=100.0, decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-2,
        begin=0,
        end=1,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        begin=0,  # from the first step, on top of the warm-up, so that one epoch is a schedule too
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

# Study on the five domains of mix: epochs, batch and rates of all its rows, equal within a stage.
_base_ = [
    "../../_base_/datasets/mix.py",
    "../../_base_/models/vit_small_dinov2.py",
    "../../_base_/models/efficientnet_lite2.py",
]
epochs = dict(stage1=28, refit=7, router=16, stage3=8)
rates = dict(stage1=3e-4, refit=3e-4, router=2e-4, stage3=1e-4)
train_dataloader = dict(batch_size=24, num_workers=12)

epochs["long"] = epochs["stage1"] + epochs["stage3"]
budget = {
    stage: dict(
        train_cfg=dict(max_epochs=count, val_interval=max(1, count // 4)),
        optim_wrapper=dict(optimizer=dict(lr=rates.get(stage, rates["stage1"]))),
        # One past the middle of a training and none at its end: with the optimiser's state it takes
        # a gigabyte, and is for those who resume alone.
        checkpoint=dict(interval=count // 2 + 1, max_keep_ckpts=1, save_last=False),
    )
    for stage, count in epochs.items()
}

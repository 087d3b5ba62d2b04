# What all rows of the study share: data, epochs, batch and rates, equal within a stage. The
# environment variable STUDY_DATA chooses the data set, one of data/*.py.
_base_ = [
    "./data/{{$STUDY_DATA:mix}}.py",
    "../../../../configs/_base_/models/vit_small_dinov2.py",
    "./efficientnet_lite2.py",
]
# 24 images a step are 29 steps an epoch of mix, too few for fresh experts.
train_dataloader = dict(batch_size=12, num_workers=12)
# Both passes of backbone and head as CUDA graphs, for rows of one head; off on a CPU. Four experts
# at batch 24 are as quick without (0.39 s a step), and take 39 GB instead of 48.
graphs = dict(backbone=True, experts=True)
# Its own loss, as every expert's; row joint_zoomnet_structure has the one that the others share.
zoomnet = dict(type="ZoomNetExpert", segmentation_loss="bce")
# Started from the row warm: a plain head adapts the backbone at a fifth of the experts' cost. Not
# from fpn, which sees the router's images: stage 2 is to meet images that nothing was trained on.
warm = dict(
    file="warm_best.pth",
    parts=("backbone",),
    command=_base_.train + "/warm.py",
)

epochs = dict(_base_.epochs)
# What the way to the ensemble takes in sum, and the part of it after the backbone's warm start.
epochs["long"] = epochs["warm"] + epochs["joint"] + epochs["stage3"]
epochs["after"] = epochs["joint"] + epochs["stage3"]
budget = {
    stage: dict(
        train_cfg=dict(max_epochs=count, val_interval=max(1, count // 2)),
        # One past the middle of a training and none at its end: with the optimiser's state it takes
        # a gigabyte, and is for those who resume alone.
        checkpoint=dict(interval=count // 2 + 1, max_keep_ckpts=1, save_last=False),
    )
    for stage, count in epochs.items()
}
# Fresh experts see some hundred steps and end unfinished at 3e-4, so they learn
# at 1e-3. What they start from never learns at more than 3e-4, its pretrained part at 3e-5.
rates = {
    stage: dict(
        optimizer=dict(lr=rate),
        paramwise_cfg=dict(
            custom_keys={
                "backbone.body": dict(lr_mult=min(0.1, 3e-5 / rate)),
                "backbone": dict(lr_mult=min(1.0, 3e-4 / rate)),
            }
        ),
    )
    for stage, rate in dict(
        fpn=3e-4,
        warm=3e-4,
        long=3e-4,
        joint=1e-3,
        cold=1e-3,
        refit=1e-3,
        after=1e-3,
        router=2e-4,
        stage3=3e-4,
    ).items()
}

# Study on PraNet's polyp benchmark: epochs and batch of all its rows, equal within a stage.
_base_ = [
    "../../../../configs/_base_/datasets/polyp.py",
    "../../../../configs/_base_/models/vit_small_dinov2.py",
    "./efficientnet_lite2.py",
    "./rates.py",
]
epochs = dict(fpn=30, warm=20, joint=8, cold=16, refit=4, router=20, stage3=8)
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
    command="python tools/train.py projects/study/configs/polyp_warm.py",
)

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

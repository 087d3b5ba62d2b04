# PraNet's polyp benchmark: TrainDataset/{images,masks} (Kvasir-SEG 900 + CVC-ClinicDB 550) and the
# official test images of both. Split as COD10K's.
_base_ = ["./loaders.py"]
data_root = "data/polyp"
size = (448, 448)

train_pipeline = [
    dict(type="LoadCODPair"),
    dict(
        type="RandomWarp",
        size=size,
        scale=(0.75, 1.25),
        rotate=30,
        flip=0.5,
        flip_vertical=0.5,
    ),
    dict(type="RandomColour", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
    dict(type="PackCODInputs"),
]
test_pipeline = [
    dict(type="LoadCODPair"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackCODInputs", keep_original=True),
]
train_set = dict(
    type="CODDataset",
    data_root=data_root,
    split_dir="TrainDataset",
    split=dict(seed=0, use=("experts",)),
    cache=True,
    pipeline=train_pipeline,
)
train_dataloader = dict(
    dataset=train_set,
)
val_dataloader = dict(
    dataset=dict(
        type="CODDataset",
        data_root=data_root,
        split_dir="TrainDataset",
        split=dict(seed=0, use=("val",)),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        datasets={
            name: dict(
                type="CODDataset",
                data_root=data_root,
                split_dir=f"TestDataset/{name}",
                pipeline=test_pipeline,
            )
            for name in ("Kvasir", "CVC-ClinicDB")
        },
    ),
)

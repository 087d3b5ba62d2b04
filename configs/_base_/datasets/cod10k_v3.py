# COD10K-v3: data_root holds Train/ and Test/, each with Image/ and GT_Object/.
# Of its training images (3,040 camouflaged ones) 75 % train the experts, 15 % are kept for the
# router, which must learn on images that the experts have not seen, and 10 % choose the best epoch.
_base_ = ["./loaders.py"]
data_root = "data/COD10K-v3"
size = (448, 448)

train_pipeline = [
    dict(type="LoadCODPair"),
    dict(type="RandomWarp", size=size, scale=(0.75, 1.25), rotate=15, flip=0.5),
    dict(type="RandomColour"),
    dict(type="PackCODInputs"),
]
test_pipeline = [
    dict(type="LoadCODPair"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackCODInputs", keep_original=True),
]
train_set = dict(
    type="COD10K",
    data_root=data_root,
    subset="Train",
    split=dict(seed=0, use=("experts",)),
    pipeline=train_pipeline,
)
train_dataloader = dict(
    dataset=train_set,
)
val_dataloader = dict(
    dataset=dict(
        type="COD10K",
        data_root=data_root,
        subset="Train",
        split=dict(seed=0, use=("val",)),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        datasets=dict(
            COD10K=dict(type="COD10K", data_root=data_root, subset="Test", pipeline=test_pipeline),
        ),
    ),
)

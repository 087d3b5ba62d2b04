# SyntheticCamouflage, the embedded default: nothing to download, the same on every machine.
# Parts are disjoint streams of images: the router's and the validation's are never the experts'.
size = 96
# Easier than camouflage: in the minutes of the quickstart a miniature learns nothing of the real
# thing (0) but where objects use to be.
visibility = 0.7

train_pipeline = [
    dict(type="LoadCODPair"),
    dict(type="RandomWarp", size=(size, size), scale=(0.75, 1.25), rotate=15, flip=0.5),
    dict(type="RandomColour"),
    dict(type="PackCODInputs"),
]
test_pipeline = [
    dict(type="LoadCODPair"),
    dict(type="PackCODInputs", keep_original=True),
]
train_dataloader = dict(
    batch_size=12,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="SyntheticCamouflage",
        length=480,
        image_size=size,
        visibility=visibility,
        part="experts",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SyntheticCamouflage",
        length=80,
        image_size=size,
        visibility=visibility,
        part="val",
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=20,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DatasetGroup",
        datasets=dict(
            Synthetic=dict(
                type="SyntheticCamouflage",
                length=120,
                image_size=size,
                visibility=visibility,
                part="test",
                pipeline=test_pipeline,
            ),
        ),
    ),
)
val_evaluator = [dict(type="CODMetric", full=False), dict(type="RoutingMetric")]
test_evaluator = [dict(type="CODMetric"), dict(type="RoutingMetric")]

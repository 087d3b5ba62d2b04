# CompositeCamouflage: the objects of SyntheticCamouflage blended into your own photographs, here a
# folder data/backgrounds of any JPEG or PNG files. No two parts share a photograph.
photo_dir = "data/backgrounds"
size = 448
fractions = dict(experts=0.65, router=0.15, val=0.1, test=0.1)

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
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    pin_memory=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CompositeCamouflage",
        photo_dir=photo_dir,
        length=2000,
        image_size=size,
        fractions=fractions,
        part="experts",
        # Made anew in every epoch: 1.3 GB in each of the workers otherwise.
        cache=False,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=12,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CompositeCamouflage",
        photo_dir=photo_dir,
        length=200,
        image_size=size,
        fractions=fractions,
        part="val",
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=12,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DatasetGroup",
        datasets=dict(
            Composite=dict(
                type="CompositeCamouflage",
                photo_dir=photo_dir,
                length=400,
                image_size=size,
                fractions=fractions,
                part="test",
                pipeline=test_pipeline,
            ),
        ),
    ),
)
val_evaluator = [dict(type="CODMetric", full=False), dict(type="RoutingMetric")]
test_evaluator = [dict(type="CODMetric"), dict(type="RoutingMetric")]

# Five domains in one training: salient objects, horses, surface defects (grey), road cracks and
# video frames. data_root holds <domain>/{train,test}/{images,masks}. Each domain is split by itself
# as COD10K is, so that experts, router and validation see all five in the same shares.
data_root = "data/mix"
size = (448, 448)
domains = ("SOD", "WeizmannHorse", "MagneticTile", "CrackForest", "DAVIS2016")
# Frames of one video (bmx-trees_00006) stay in one part; no other domain has such names.
together = r"[a-z-]+_(?=\d{5}$)"
# Pixel for pixel the test image horse240.
exclude = dict(WeizmannHorse=["horse274"])

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
train_dataloader = dict(
    batch_size=12,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    pin_memory=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="DatasetGroup",
        split=dict(seed=0, use=("experts",), together=together),
        cache=True,
        datasets={
            name: dict(
                type="CODDataset",
                data_root=data_root,
                split_dir=f"{name}/train",
                exclude=exclude.get(name, []),
                pipeline=train_pipeline,
            )
            for name in domains
        },
    ),
)
val_dataloader = dict(
    batch_size=12,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DatasetGroup",
        split=dict(seed=0, use=("val",), together=together),
        datasets={
            name: dict(
                type="CODDataset",
                data_root=data_root,
                split_dir=f"{name}/train",
                exclude=exclude.get(name, []),
                pipeline=test_pipeline,
            )
            for name in domains
        },
    ),
)
test_dataloader = dict(
    batch_size=12,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DatasetGroup",
        datasets={
            name: dict(
                type="CODDataset",
                data_root=data_root,
                split_dir=f"{name}/test",
                pipeline=test_pipeline,
            )
            for name in domains
        },
    ),
)
val_evaluator = [dict(type="CODMetric", full=False), dict(type="RoutingMetric")]
test_evaluator = [dict(type="CODMetric"), dict(type="RoutingMetric")]

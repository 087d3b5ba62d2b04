# What the shipped weights are trained on: synthetic camouflage at three visibilities, and the same
# objects in freely licensed photographs (data/photos_free; listed in the model card).
# Nothing is kept: every image is made anew when it is asked for, 40 to 45 a second on one core at
# 256 px. Set OMP_NUM_THREADS=1, or the workers' matrix products fight for the cores.
_base_ = ["./loaders.py"]
photo_dir = "data/photos_free"
size = 256
fractions = dict(experts=0.6, router=0.15, val=0.1, test=0.15)  # of the photographs
visibilities = dict(Hidden=0.0, Faint=0.35, Plain=0.7)

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


def four_sets(part, lengths, pipeline, seeds=(0, 0, 0, 0)):
    """{name: config} of the three visibilities and of the photographs, in this order. With equal
    seeds the three hold the same scenes: right for a comparison, a waste in training.
    """
    common = dict(image_size=size, part=part, cache=False, pipeline=pipeline)
    sets = {
        name: dict(type="SyntheticCamouflage", visibility=visibility, **common)
        for name, visibility in visibilities.items()
    }
    sets["Photos"] = dict(
        type="CompositeCamouflage", photo_dir=photo_dir, fractions=fractions, **common
    )
    return {
        name: dict(config, length=length, seed=seed)
        for (name, config), length, seed in zip(sets.items(), lengths, seeds, strict=True)
    }


train_dataloader = dict(
    batch_size=48,
    num_workers=16,
    dataset=dict(
        type="DatasetGroup",
        datasets=four_sets("experts", (3000, 4000, 3000, 6000), train_pipeline, (0, 1, 2, 3)),
    ),
)
val_dataloader = dict(
    batch_size=32,
    dataset=dict(type="DatasetGroup", datasets=four_sets("val", (80, 80, 80, 120), test_pipeline)),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=8,
    dataset=dict(
        type="DatasetGroup", datasets=four_sets("test", (240, 240, 240, 240), test_pipeline)
    ),
)

# What the shipped weights are trained on: photographs with masks under open licences, their objects
# cut out and laid into each other, textures of theirs as objects, and synthetic camouflage.
# --data-root names the folder of complete/ (every object is masked) and people/ (one person is, and
# what is beside it is not), each with images/ and masks/.
# Nothing is kept: every image is made anew when it is asked for, 20 to 40 a second on one core. Set
# OMP_NUM_THREADS=1, or the workers' matrix products fight for the cores.
_base_ = ["./loaders.py"]
data_root = "data/open/coco"
size = 336
fractions = dict(experts=0.55, router=0.15, val=0.15, test=0.15)  # of the photographs
visibilities = dict(Hidden=0.0, Faint=0.35, Plain=0.7)

train_pipeline = [
    dict(type="LoadCODPair"),
    dict(
        type="RandomWarp",
        size=(size, size),
        scale=(0.7, 1.6),
        rotate=20,
        aspect=0.2,
        flip=0.5,
        crop=True,
        keep_object=0.5,
    ),
    dict(type="RandomColour", brightness=0.3, contrast=0.3, saturation=0.4, hue=0.04),
    dict(type="RandomBlur", prob=0.2),
    dict(type="RandomJPEG", prob=0.3),
    dict(type="PackCODInputs"),
]
test_pipeline = [
    dict(type="LoadCODPair"),
    dict(type="Resize", scale=(size, size), keep_ratio=False),
    dict(type="PackCODInputs", keep_original=True),
]


# Where a whole photograph shows objects without a mask, a network learns that these are none: of
# those with one person masked only cut-outs and textures are taken.
kinds = dict(
    complete=(
        *("camouflaged", "clutter", "whole", "salient", "figure"),
        *("camouflaged", "multiscale", "whole", "ambiguous"),
    ),
    people=("camouflaged", "clutter", "figure", "salient", "multiscale", "ambiguous"),
)


def composites(folder, part, length, pipeline, seed=0, kinds=("camouflaged", "salient")):
    return dict(
        type="CompositeCamouflage",
        data_root=data_root,
        photo_dir=f"{folder}/images",
        mask_dir=f"{folder}/masks",
        fractions=fractions,
        part=part,
        length=length,
        seed=seed,
        kinds=kinds,
        image_size=size,
        cache=False,
        pipeline=pipeline,
    )


def synthetic(part, length, pipeline, seeds=(0, 0, 0)):
    """{name: config} of the three visibilities. With equal seeds they hold the same scenes: right
    for a comparison, a waste in training.
    """
    common = dict(image_size=size, part=part, cache=False, pipeline=pipeline, length=length)
    return {
        name: dict(common, type="SyntheticCamouflage", visibility=visibility, seed=seed)
        for (name, visibility), seed in zip(visibilities.items(), seeds, strict=True)
    }


def photographs(part):
    """Whole photographs that no composite of another part was made of."""
    return dict(
        type="CODDataset",
        data_root=data_root,
        image_dir="complete/images",
        mask_dir="complete/masks",
        split=dict(seed=0, fractions=fractions, use=(part,)),
        pipeline=test_pipeline,
    )


def held_out(part, count, scenes):
    textures = ("clutter", "figure", "multiscale", "ambiguous")
    return dict(
        type="DatasetGroup",
        datasets=dict(
            Photos=photographs(part),
            Cutouts=composites("complete", part, count, test_pipeline),
            Textures=composites("people", part, count, test_pipeline, kinds=textures),
            **synthetic(part, scenes, test_pipeline),
        ),
    )


train_dataloader = dict(
    batch_size=32,
    num_workers=16,
    dataset=dict(
        type="DatasetGroup",
        datasets=dict(
            Complete=composites("complete", "experts", 3600, train_pipeline, 0, kinds["complete"]),
            People=composites("people", "experts", 1500, train_pipeline, 4, kinds["people"]),
            **synthetic("experts", 300, train_pipeline, (1, 2, 3)),
        ),
    ),
)
val_dataloader = dict(batch_size=32, num_workers=8, dataset=held_out("val", 80, 30))
test_dataloader = dict(batch_size=32, num_workers=8, dataset=held_out("test", 160, 120))

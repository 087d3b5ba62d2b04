# CompositeCamouflage: the objects of SyntheticCamouflage blended into your own photographs, here a
# folder data/backgrounds of any JPEG or PNG files. No two parts share a photograph.
_base_ = ["./loaders.py"]
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


def images(part, length, pipeline):
    common = dict(type="CompositeCamouflage", photo_dir=photo_dir, fractions=fractions)
    return dict(common, image_size=size, part=part, length=length, pipeline=pipeline)


train_dataloader = dict(
    # Made anew in every epoch: 1.3 GB in each of the workers otherwise.
    dataset=dict(images("experts", 2000, train_pipeline), cache=False),
)
val_dataloader = dict(dataset=images("val", 200, test_pipeline))
test_dataloader = dict(
    dataset=dict(type="DatasetGroup", datasets=dict(Composite=images("test", 400, test_pipeline))),
)

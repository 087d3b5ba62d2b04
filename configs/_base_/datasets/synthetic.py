# SyntheticCamouflage, the embedded default: nothing to download, the same on every machine.
# Parts are disjoint streams of images: the router's and the validation's are never the experts'.
_base_ = ["./loaders.py"]
size = 168  # 12 patches of 14 pixels; 9 and 6 at the experts' other scales
visibility = 0.7  # 0: camouflage proper; 1: plain to see

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
    common = dict(type="SyntheticCamouflage", image_size=size, visibility=visibility)
    return dict(common, part=part, length=length, pipeline=pipeline)


train_dataloader = dict(
    num_workers=1,
    pin_memory=False,
    dataset=images("experts", 240, train_pipeline),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=1,
    dataset=images("val", 60, test_pipeline),
)
test_dataloader = dict(
    batch_size=20,
    num_workers=1,
    dataset=dict(type="DatasetGroup", datasets=dict(Synthetic=images("test", 120, test_pipeline))),
)

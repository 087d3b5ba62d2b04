# The protocol of the COD papers: training on COD10K (3,040) + CAMO (1,000), test on CHAMELEON (76),
# CAMO (250), COD10K (2,026) and NC4K (4,121). data_root holds either the folders as they are
# downloaded (COD10K-v3, CAMO-V.1.0-CVIU2019, CHAMELEON, NC4K) or TrainDataset and TestDataset.
# To check it first: codmoe doctor data
_base_ = ["./loaders.py"]
data_root = "data"
size = (448, 448)
# Of each training set 75 % train the experts, 15 % are kept for the router, 10 % choose the best
# epoch. Beside the weights that are trained on it; written once and read by all stages.
split = dict(seed=0, file="checkpoints_moe/cod/split.json")

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


def sets(part, names, pipeline):
    common = dict(type="CODBenchmark", data_root=data_root, part=part, pipeline=pipeline)
    return {name: dict(common, benchmark=name) for name in names}


train_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        split=dict(split, use=("experts",)),
        datasets=sets("train", ("COD10K", "CAMO"), train_pipeline),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        split=dict(split, use=("val",)),
        datasets=sets("train", ("COD10K", "CAMO"), test_pipeline),
    ),
)
test_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        datasets=sets("test", ("CHAMELEON", "CAMO", "COD10K", "NC4K"), test_pipeline),
    ),
)

# Five domains in one training: salient objects, horses, surface defects (grey), road cracks and
# video frames. data_root holds <domain>/{train,test}/{images,masks}. Each domain is split by itself
# as COD10K is, so that experts, router and validation see all five in the same shares.
_base_ = ["../../../../../configs/_base_/datasets/loaders.py"]
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


def sets(part, pipeline):
    common = dict(type="CODDataset", data_root=data_root, pipeline=pipeline)
    if part == "test":
        return {name: dict(common, split_dir=f"{name}/test") for name in domains}
    return {
        name: dict(common, split_dir=f"{name}/train", exclude=exclude.get(name, []))
        for name in domains
    }


train_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        split=dict(seed=0, use=("experts",), together=together),
        cache=True,
        datasets=sets("train", train_pipeline),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="DatasetGroup",
        split=dict(seed=0, use=("val",), together=together),
        datasets=sets("train", test_pipeline),
    ),
)
test_dataloader = dict(
    dataset=dict(type="DatasetGroup", datasets=sets("test", test_pipeline)),
)

# How long each stage of the study learns, where it leaves weights, and what runs it.
epochs = dict(fpn=30, warm=20, joint=12, cold=20, refit=4, router=48, stage3=10)
folder = "checkpoints_moe/study/mix"
train = "STUDY_DATA=mix python tools/train.py projects/study/configs"

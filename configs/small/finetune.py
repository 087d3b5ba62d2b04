# The small ensemble that ships, trained further on other images: COD10K's or, by --images and
# --masks or --data-root, your own.
_base_ = [
    "../_base_/stages/ensemble.py",
    "../_base_/models/small.py",
    "../_base_/datasets/cod10k_v3.py",
]
init_from = dict(file="small")  # the weights in the package
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    router=dict(width=64, fallback=1e-6),  # as validation chose, next to none
    top_k=3,  # as validation chose for the weights in the package
    expert_execution="together",
    checkpoint_backbone=None,
)
size = (336, 336)  # as it was trained
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
    dataset=dict(split=dict(use=("experts", "router")), pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(datasets=dict(COD10K=dict(pipeline=test_pipeline))))
train_cfg = dict(max_epochs=20)
default_hooks = dict(best=dict(name="finetuned"))

# CAMO-V.1.0 by its official split: data/camo/{train,test}/{images,masks}. Of the training images
# 95 % train everything, experts, heads and router, and 5 % are for choices.
_base_ = ["../../../../configs/_base_/datasets/loaders.py"]
data_root = "data/camo"
split = dict(seed=0, fractions=dict(experts=0.95, val=0.05))
# The side of the images, which the shared backbone reads first; experts of input_scale 0.8 and 1.2
# read 448 and 672. Images brought to 448 and enlarged again would have nothing finer to show.
side = 560
train_pipelines = {
    f"px{size}": [
        dict(type="LoadCODPair"),
        dict(type="RandomWarp", size=(size, size), scale=(0.75, 1.25), rotate=15, flip=0.5),
        dict(type="RandomColour"),
        dict(type="PackCODInputs"),
    ]
    for size in (448, 560, 728, 840)
}
test_pipelines = {
    f"px{size}": [
        dict(type="LoadCODPair"),
        dict(type="Resize", scale=(size, size), keep_ratio=False),
        dict(type="PackCODInputs", keep_original=True),
    ]
    for size in (448, 560, 728, 840)
}
train_dataloader = dict(
    num_workers=6,
    dataset=dict(
        type="CODDataset",
        data_root=data_root,
        split_dir="train",
        name="CAMO",
        split=dict(split, use=("experts",)),
        cache=True,
        pipeline=train_pipelines[f"px{side}"],
    ),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=2,
    dataset=dict(
        type="CODDataset",
        data_root=data_root,
        split_dir="train",
        name="CAMO",
        split=dict(split, use=("val",)),
        pipeline=test_pipelines[f"px{side}"],
    ),
)
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        type="DatasetGroup",
        datasets=dict(
            CAMO=dict(
                type="CODDataset",
                data_root=data_root,
                split_dir="test",
                name="CAMO",
                pipeline=test_pipelines[f"px{side}"],
            ),
        ),
    ),
)

# For pretraining: 1,000 images of salient objects of at most 352 px, as projects/growing_mixture
# prepares them.
duts = dict(data_root="data/growing/duts", name="DUTS")

dinov2_small = dict(
    _delete_=True,
    type="ViTPyramid",
    name="vit_small_patch14_dinov2",
    image_size=518,  # the grid of the pretrained position embedding, resampled for each size
    layers=(2, 5, 8, 11),
    checkpoint="data/weights/vit_small_patch14_dinov2.fp16.safetensors",
)
# The pretrained part learns at 2e-5 (5e-5 costs 2.5 points), in stage 3 at half of that.
rates = {
    stage: dict(
        optimizer=dict(lr=lr),
        paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=body / lr)}),
    )
    for stage, (lr, body) in dict(
        plain=(4e-4, 2e-5),
        experts=(6e-4, 2e-5),
        held=(6e-4, 3e-5),
        router=(4e-4, 2e-5),
        stage3=(2e-4, 1e-5),
    ).items()
}
# Weights are those of the middle or the end of a training, whichever validates better.
checkpoint = dict(interval=1000, max_keep_ckpts=1, save_last=False)

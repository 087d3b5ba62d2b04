# Three domains in data/growing/{camo,duts,polyp}/{train,test}, see run.py prepare. Of the training
# images of each 75 % are the experts', 15 % the router's and 10 % for choices.
_base_ = [
    "../../../../configs/_base_/datasets/loaders.py",
    "../../../../configs/_base_/models/small.py",
]
size = (336, 336)
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


def images(domains, use, pipeline, **split):
    return {
        name: dict(
            type="CODDataset",
            data_root=f"data/growing/{name.lower()}",
            split_dir="train",
            name=name,
            split=dict(seed=0, use=use, **split),
            cache=True,
            pipeline=pipeline,
        )
        for name in domains
    }


def test_images(folder, part):
    root = dict(data_root=f"data/growing/{folder}", split_dir=part)
    return dict(type="CODDataset", pipeline=test_pipeline, **root)


old, new = ("CAMO", "DUTS"), ("POLYP",)
# A model that needs no router learns from the router's images, too.
whole = ("experts", "router")
# Of the experts' part of the old domains two fifths, so that old and new images are as many. Parts
# are cut in the order of their names: the others stay what they are.
fifths = dict(experts=0.30, experts_rest=0.45, router=0.15, val=0.10)
training = dict(
    old_experts=images(old, ("experts",), train_pipeline),
    old_router=images(old, ("router",), train_pipeline),
    # Which old expert is the better one is settled, so that images which these have learnt from
    # serve: they tell old from new.
    grown={
        **images(old, whole, train_pipeline, fractions=fifths),
        **images(new, whole, train_pipeline),
    },
    camo=images(("CAMO",), ("experts",), train_pipeline),
    duts=images(("DUTS",), ("experts",), train_pipeline),
    polyp=images(new, ("experts",), train_pipeline),
    router=images(old + new, ("router",), train_pipeline),
    alone=images(new, whole, train_pipeline),
    everything=images(old + new, whole, train_pipeline),
)
validation = dict(
    old=images(old, ("val",), test_pipeline),
    camo=images(("CAMO",), ("val",), test_pipeline),
    duts=images(("DUTS",), ("val",), test_pipeline),
    polyp=images(new, ("val",), test_pipeline),
    all=images(old + new, ("val",), test_pipeline),
)
train_dataloader = dict(batch_size=16, num_workers=4, dataset=dict(type="DatasetGroup"))
val_dataloader = dict(batch_size=16, num_workers=2, dataset=dict(type="DatasetGroup"))
test_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type="DatasetGroup",
        datasets={
            "CAMO": test_images("camo", "test"),
            "DUTS": test_images("duts", "test"),
            "Kvasir": test_images("polyp", "test/Kvasir"),
            "CVC-ClinicDB": test_images("polyp", "test/CVC-ClinicDB"),
        },
    ),
)

plain = dict(type="FPNExpert", channels=128)
# All but the first two of twelve blocks are its own, as the shared ones are held: held from
# pretrained weights, two cost a plain head 2 points on CAMO, four 4 in a short training
# (projects/camo_study).
specialist = dict(plain, own_blocks=10)
newcomer = dict(specialist, learns_from=new)
# The pretrained blocks learn at 2e-5.
rates = dict(
    optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=0.05)})
)
# Weights are those of the middle or the end of a training, whichever validates better.
schedule = dict(max_epochs=20, val_interval=10)
checkpoint = dict(interval=5, max_keep_ckpts=1)

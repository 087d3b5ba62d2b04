# The small ensemble that ships, trained further on other images: COD10K's or, by --images and
# --masks or --data-root, your own.
_base_ = [
    "../_base_/stages/ensemble.py",
    "../_base_/models/small.py",
    "../_base_/datasets/cod10k_v3.py",
]
init_from = dict(
    file="codmoe/weights/small_ensemble.safetensors", command="git checkout codmoe/weights"
)
model = dict(
    backbone={{_base_.small_backbone}},
    experts={{_base_.small_experts}},
    router=dict(width=64),
)
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
train_cfg = dict(max_epochs=20)
default_hooks = dict(best=dict(name="finetuned"))

# A copy of the experts that has not seen one half of the training images, and is tested on it: what
# the router of router.py learns from.
_base_ = ["./joint.py"]
train_cfg = dict(max_epochs=12, val_interval=12)
train_dataloader = dict(dataset=dict(split=dict(folds=2, use=("experts",))))
val_dataloader = dict(dataset=dict(split=dict(folds=2)))
test_dataloader = dict(
    dataset=dict(
        datasets=dict(
            CAMO=dict(
                split_dir="train",
                split=dict(
                    seed=0, fractions=dict(experts=0.95, val=0.05), folds=2, use=("router",)
                ),
            )
        )
    )
)

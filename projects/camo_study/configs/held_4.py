# held_0 with the embeddings and the first 4 of 12 blocks held.
_base_ = ["./held_2.py"]
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "backbone.body.blocks.2.": dict(lr_mult=0.0),
            "backbone.body.blocks.3.": dict(lr_mult=0.0),
        }
    )
)
default_hooks = dict(best=dict(name="held_4"))

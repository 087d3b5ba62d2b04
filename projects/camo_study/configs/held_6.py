# held_0 with the embeddings and the first 6 of 12 blocks held.
_base_ = ["./held_4.py"]
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "backbone.body.blocks.4.": dict(lr_mult=0.0),
            "backbone.body.blocks.5.": dict(lr_mult=0.0),
        }
    )
)
default_hooks = dict(best=dict(name="held_6"))

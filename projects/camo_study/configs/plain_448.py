# A plain head at 448 px, twice as long as the mixture's experts learn.
_base_ = ["./_base_/plain.py"]
train_cfg = dict(max_epochs=80, val_interval=40)
default_hooks = dict(best=dict(name="plain_448"))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipelines.px448}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipelines.px448}}))
test_dataloader = dict(
    dataset=dict(datasets=dict(CAMO=dict(pipeline={{_base_.test_pipelines.px448}})))
)

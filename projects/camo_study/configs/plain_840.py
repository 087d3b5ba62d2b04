# A plain head of about the operations of two experts of the mixture.
_base_ = ["./_base_/plain.py"]
train_cfg = dict(max_epochs=40, val_interval=20)
default_hooks = dict(best=dict(name="plain_840"))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipelines.px840}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipelines.px840}}))
test_dataloader = dict(
    dataset=dict(datasets=dict(CAMO=dict(pipeline={{_base_.test_pipelines.px840}})))
)

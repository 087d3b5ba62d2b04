# A plain head of about the operations of two of the five experts of apart.py, as long as these.
_base_ = ["./_base_/plain.py", "./_base_/apart.py"]
train_cfg = {{_base_.apart_schedule}}
default_hooks = dict(best=dict(name="plain_840"))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipelines.px840}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipelines.px840}}))
test_dataloader = dict(
    dataset=dict(datasets=dict(CAMO=dict(pipeline={{_base_.test_pipelines.px840}})))
)

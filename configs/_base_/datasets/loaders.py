# Loaders and metrics of all data sets; each adds its `dataset` to the loaders.
train_dataloader = dict(
    batch_size=12,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    pin_memory=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=12,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type="stack_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = dict(
    batch_size=12,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
)
val_evaluator = [dict(type="CODMetric", full=False), dict(type="RoutingMetric")]
test_evaluator = [dict(type="CODMetric"), dict(type="RoutingMetric")]

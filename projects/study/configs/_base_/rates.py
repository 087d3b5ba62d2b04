# Rates of the study's stages on both data sets: optim_wrapper = {{_base_.rates.joint}}
# Fresh experts see some hundred steps and end unfinished at 3e-4, so they learn
# at 1e-3. What they start from never learns at more than 3e-4, its pretrained part at 3e-5.
rates = {
    stage: dict(
        optimizer=dict(lr=rate),
        paramwise_cfg=dict(
            custom_keys={
                "backbone.body": dict(lr_mult=min(0.1, 3e-5 / rate)),
                "backbone": dict(lr_mult=min(1.0, 3e-4 / rate)),
            }
        ),
    )
    for stage, rate in dict(
        fpn=3e-4,
        warm=3e-4,
        long=3e-4,
        joint=1e-3,
        cold=1e-3,
        refit=1e-3,
        after=1e-3,
        router=2e-4,
        stage3=3e-4,
    ).items()
}

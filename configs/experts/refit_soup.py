# As refit_one_backbone.py, on the average of the four backbones (model soup).
_base_ = ["./refit_one_backbone.py"]
init_from = dict(
    backbone=dict(
        _delete_=True,
        average=[
            "expert_pranet_best.pth",
            "expert_sinet_best.pth",
            "expert_ujsc_best.pth",
            "expert_zoomnet_best.pth",
        ],
    ),
)
default_hooks = dict(best=dict(name="experts_soup"))

# Stage 2 on experts that were trained apart. Their truth is that of the copies of joint.py's, which
# have the same decoders and scales.
_base_ = ["./router.py", "./_base_/apart.py"]
init_from = dict(
    _delete_=True,
    backbone="apart_fpn_best.pth",
    experts={
        name: f"apart_{name}_best.pth" for name in ("fpn", "pranet", "sinet", "ujsc", "zoomnet")
    },
    command="python projects/camo_study/run.py --rows apart_fpn apart_pranet apart_sinet "
    "apart_ujsc apart_zoomnet",
)
model = dict(
    experts={{_base_.apart_experts}},
    router_truth=dict(
        files=(
            "projects/camo_study/results/fold0.json",
            "projects/camo_study/results/fold1.json",
        ),
    ),
)
default_hooks = dict(best=dict(name="apart_router"))

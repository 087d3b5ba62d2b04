# Stage 2 on experts that were trained apart. Their truth is that of the copies of joint.py's, which
# have the same decoders and scales.
_base_ = ["./router.py"]
init_from = dict(
    _delete_=True,
    backbone="apart_fpn_best.pth",
    experts={
        name: f"apart_{name}_best.pth" for name in ("fpn", "pranet", "sinet", "ujsc", "zoomnet")
    },
    command="python projects/camo_study/run.py --rows apart_fpn apart_pranet apart_sinet "
    "apart_ujsc apart_zoomnet",
)
model = dict(experts={{_base_.mixture_apart}}, router_truth={{_base_.kept_truth}})
default_hooks = dict(best=dict(name="apart_router"))

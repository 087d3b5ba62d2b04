# Stage 1b for experts that were trained separately: the backbone is SINet's, the heads are each
# expert's own, and those that do not fit this backbone learn to.
_base_ = ["../_base_/stages/refit.py", "../_base_/datasets/cod10k_v3.py"]
init_from = dict(
    _delete_=True,
    backbone="expert_sinet_best.pth",
    experts=dict(
        pranet="expert_pranet_best.pth",
        sinet="expert_sinet_best.pth",
        ujsc="expert_ujsc_best.pth",
        zoomnet="expert_zoomnet_best.pth",
    ),
    command="codmoe train configs/experts/sinet.py --gpus 2 (pranet, ujsc, zoomnet likewise)",
)
assembly = dict(max_drop=None)  # they are expected to have dropped: that is what is mended here
default_hooks = dict(best=dict(name="experts_one_backbone"))

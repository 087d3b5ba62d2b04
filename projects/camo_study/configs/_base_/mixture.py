# Five experts on one backbone, each at its own scale of the image: 448, 560 and 672 px; ZoomNet
# reads 224, 448 and 672. SINet, PraNet, ZoomNet and UJSC are 64 wide (3 to 8 M parameters).
mixture = dict(
    fpn=dict(type="FPNExpert", channels=128),
    pranet=dict(
        type="PraNetExpert", channels=64, residual_norm=False, output_stride=4, input_scale=1.2
    ),
    sinet=dict(type="SINetExpert", channels=64, output_stride=4, input_scale=0.8),
    ujsc=dict(type="UJSCExpert", channels=64),
    zoomnet=dict(
        type="ZoomNetExpert",
        channels=64,
        input_scales=(0.4, 0.8, 1.2),
        segmentation_loss="structure",
    ),
)
# In stage 3 ZoomNet's uncertainty loss goes on where stage 1 ended.
mixture_later = dict(mixture, zoomnet=dict(mixture["zoomnet"], ual_start=1.0))
# Trained apart, each with all but the first two of twelve blocks of its own: the embeddings and
# these two are held, so that the trained parts fit together unchanged. FPN has the backbone's
# blocks, which the router reads, too.
mixture_apart = {
    "_delete_": True,
    **{
        name: expert if name == "fpn" else dict(expert, own_blocks=10)
        for name, expert in mixture.items()
    },
}
# What copies of joint.py's experts by folds said of these, for routers of experts like them.
kept_truth = dict(
    files=(
        "projects/camo_study/results/fold0.json",
        "projects/camo_study/results/fold1.json",
    ),
)

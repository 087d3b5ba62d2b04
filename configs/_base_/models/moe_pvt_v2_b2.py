model = dict(
    type="ModelLevelMoE",
    data_preprocessor=dict(type="CODDataPreprocessor"),
    backbone=dict(type="TimmPyramid", name="pvt_v2_b2", pretrained=True),
    experts=dict(
        sinet=dict(type="SINetExpert"),
        pranet=dict(type="PraNetExpert"),
        zoomnet=dict(type="ZoomNetExpert"),
        ujsc=dict(type="UJSCExpert"),
    ),
    combiner=dict(type="ProbabilityCombiner"),
)

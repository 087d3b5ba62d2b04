model = dict(
    type="ModelLevelMoE",
    data_preprocessor=dict(type="CODDataPreprocessor"),
    backbone=dict(type="TimmPyramid", name="pvt_v2_b2", pretrained=True),
    experts=dict(
        sinet=dict(type="SINetExpert"),
        # Unlike the paper's, residuals end without batch norm, whose one scale hardly moves in a
        # short training.
        pranet=dict(type="PraNetExpert", residual_norm=False),
        zoomnet=dict(type="ZoomNetExpert"),
        ujsc=dict(type="UJSCExpert"),
    ),
    combiner=dict(type="ProbabilityCombiner"),
)

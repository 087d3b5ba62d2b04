from codmoe.models.backbones import Backbone, TimmPyramid, ViTPyramid
from codmoe.models.combiners import Combiner, LogitCombiner, PixelCombiner, ProbabilityCombiner
from codmoe.models.experts import Expert, PraNetExpert, SINetExpert, UJSCExpert, ZoomNetExpert
from codmoe.models.losses import (
    ExpectedRegretLoss,
    ExpertIoUDistillation,
    ExpertRankingLoss,
    LoadBalanceLoss,
    RouterZLoss,
    StructureLoss,
    UncertaintyAwareLoss,
)
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.preprocessor import CODDataPreprocessor
from codmoe.models.routers import (
    EvidenceRouter,
    FixedRouter,
    OracleRouter,
    RandomRouter,
    Router,
    UniformRouter,
)

__all__ = [
    "Backbone",
    "CODDataPreprocessor",
    "Combiner",
    "EvidenceRouter",
    "ExpectedRegretLoss",
    "Expert",
    "ExpertIoUDistillation",
    "ExpertRankingLoss",
    "FixedRouter",
    "LoadBalanceLoss",
    "LogitCombiner",
    "ModelLevelMoE",
    "OracleRouter",
    "PixelCombiner",
    "PraNetExpert",
    "ProbabilityCombiner",
    "RandomRouter",
    "Router",
    "RouterZLoss",
    "SINetExpert",
    "StructureLoss",
    "TimmPyramid",
    "UJSCExpert",
    "UncertaintyAwareLoss",
    "UniformRouter",
    "ViTPyramid",
    "ZoomNetExpert",
]

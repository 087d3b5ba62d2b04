from codmoe.models.backbones import Backbone, TimmPyramid, ViTPyramid
from codmoe.models.combiners import Combiner, LogitCombiner, ProbabilityCombiner
from codmoe.models.experts import Expert, PraNetExpert, SINetExpert, UJSCExpert, ZoomNetExpert
from codmoe.models.losses import (
    ExpertIoUDistillation,
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
    RandomRouter,
    Router,
    UniformRouter,
)

__all__ = [
    "Backbone",
    "CODDataPreprocessor",
    "Combiner",
    "EvidenceRouter",
    "Expert",
    "ExpertIoUDistillation",
    "FixedRouter",
    "LoadBalanceLoss",
    "LogitCombiner",
    "ModelLevelMoE",
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

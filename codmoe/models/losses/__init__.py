from codmoe.models.losses.routing import (
    ExpectedRegretLoss,
    ExpertIoUDistillation,
    ExpertRankingLoss,
    LoadBalanceLoss,
    RouterZLoss,
)
from codmoe.models.losses.segmentation import (
    SoftIoULoss,
    StructureLoss,
    UncertaintyAwareLoss,
    iou_per_image,
)

__all__ = [
    "ExpectedRegretLoss",
    "ExpertIoUDistillation",
    "ExpertRankingLoss",
    "LoadBalanceLoss",
    "RouterZLoss",
    "SoftIoULoss",
    "StructureLoss",
    "UncertaintyAwareLoss",
    "iou_per_image",
]

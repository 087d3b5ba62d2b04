from codmoe.models.losses.routing import (
    ExpectedRegretLoss,
    ExpertIoUDistillation,
    ExpertRankingLoss,
    LoadBalanceLoss,
    RouterZLoss,
)
from codmoe.models.losses.segmentation import StructureLoss, UncertaintyAwareLoss, iou_per_image

__all__ = [
    "ExpectedRegretLoss",
    "ExpertIoUDistillation",
    "ExpertRankingLoss",
    "LoadBalanceLoss",
    "RouterZLoss",
    "StructureLoss",
    "UncertaintyAwareLoss",
    "iou_per_image",
]

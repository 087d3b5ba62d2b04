from codmoe.models.losses.routing import (
    ExpertIoUDistillation,
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
    "ExpertIoUDistillation",
    "LoadBalanceLoss",
    "RouterZLoss",
    "SoftIoULoss",
    "StructureLoss",
    "UncertaintyAwareLoss",
    "iou_per_image",
]

"""What every log shows of the router. No name contains "loss": mmengine would sum it."""

from __future__ import annotations

import torch
from torch import Tensor

from codmoe.structures import RoutingDecision


@torch.no_grad()
def routing_monitors(
    decision: RoutingDecision, expert_iou: Tensor | None = None
) -> dict[str, Tensor]:
    """Scalars about one batch, left on the device.

    Args:
        decision: The router's decision on N images.
        expert_iou: IoU of every expert on every image, (N, E), where all were run.

    Returns:
        ``share_<name>``, the mean weight of each expert; ``mutual_information`` H(mean p) −
        mean H(p) in nats, 0 for a router that ignores the image; with ``expert_iou`` also
        ``IoU_<name>``, ``IoU_oracle`` and ``IoU_first_choice``. Empty for a lone expert.
    """
    names = decision.expert_names
    monitors = {}
    if expert_iou is not None:
        monitors.update(
            {f"IoU_{name}": v for name, v in zip(names, expert_iou.mean(0), strict=True)}
        )
    if len(names) == 1:
        return monitors
    if expert_iou is not None:
        first = decision.indices[:, :1]
        monitors["IoU_oracle"] = expert_iou.amax(1).mean()
        monitors["IoU_first_choice"] = expert_iou.gather(1, first).mean()
    p = decision.probabilities.float()
    weights = torch.zeros_like(p).scatter(1, decision.indices, decision.weights.float())
    monitors.update({f"share_{name}": v for name, v in zip(names, weights.mean(0), strict=True)})
    monitors["mutual_information"] = _entropy(p.mean(0)) - _entropy(p).mean()
    return monitors


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(-1)

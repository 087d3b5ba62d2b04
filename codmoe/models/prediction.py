"""From maps at network resolution to data samples at their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codmoe.structures import CODDataSample, RoutingDecision


def fill_samples(
    samples: list[CODDataSample], logits: Tensor, decision: RoutingDecision, names: Sequence[str]
) -> list[CODDataSample]:
    """Fills ``pred_prob``, ``routing`` and, where ``logits`` hold them, ``expert_probs``.

    Args:
        samples: One an image; ``ori_shape`` is the size to resize to, the logits' own if absent.
        logits: The mixture's and, after it, every expert's, (N, 1, H, W) or (N, 1 + E, H, W).
        decision: The router's, on these images.
        names: Experts.

    Returns:
        ``samples``.
    """
    # One copy to the host, and one wait, for all three.
    packed = torch.cat([decision.probabilities, decision.weights, decision.indices], dim=1)
    k = decision.indices.shape[1]
    probabilities, weights, indices = packed.float().cpu().split([len(names), k, k], dim=1)
    for i, sample in enumerate(samples):
        shape = tuple(sample.get("ori_shape", logits.shape[-2:]))
        resized = F.interpolate(logits[i : i + 1], shape, mode="bilinear", align_corners=False)
        sample.pred_prob, *others = resized[0].sigmoid()
        if others:
            sample.expert_probs = dict(zip(names, others, strict=True))
        sample.routing = dict(
            probabilities=probabilities[i],
            indices=indices[i].long(),
            weights=weights[i],
            expert_names=list(names),
        )
    return samples

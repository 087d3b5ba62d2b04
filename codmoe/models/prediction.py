"""From maps at network resolution to data samples at their own."""

from __future__ import annotations

from collections.abc import Sequence

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
    info = {k: v.float().cpu() for k, v in decision.as_info().items() if isinstance(v, Tensor)}
    for i, sample in enumerate(samples):
        shape = tuple(sample.get("ori_shape", logits.shape[-2:]))
        resized = F.interpolate(logits[i : i + 1], shape, mode="bilinear", align_corners=False)
        probabilities = resized[0].sigmoid()
        sample.pred_prob = probabilities[0]
        if len(probabilities) > 1:
            sample.expert_probs = dict(zip(names, probabilities[1:], strict=True))
        sample.routing = dict(
            probabilities=info["probabilities"][i],
            indices=info["top_k_indices"][i].long(),
            weights=info["top_k_weights"][i],
            expert_names=list(names),
        )
    return samples

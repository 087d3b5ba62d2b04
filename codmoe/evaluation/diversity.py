"""Tells how unlike experts err: the room that a mixture of them has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codmoe.evaluation.measures.histogram import divide

MEANING = (
    "D = (1 − IoU of two experts' masks) / (1 − IoU): 0 if all masks are the same, at most 2, "
    "where errors share nothing. The lower D and the higher the correlation of wrong pixels, the "
    "less a mixture of these experts can gain"
)


def pairwise(masks: Tensor, truth: Tensor) -> Tensor:
    """How alike the experts' masks of one image are, (2, P): IoU of each two masks, and Pearson's
    correlation of where they are wrong (0 if one of them is nowhere wrong, or everywhere).

    Pairs are in the order of ``itertools.combinations``.

    Args:
        masks: The experts' masks, (E, H, W) bool.
        truth: Ground truth, (H, W) bool.
    """
    first, second = torch.triu_indices(len(masks), len(masks), 1, device=masks.device)
    rows = masks.flatten(1)
    wrong = rows != truth.flatten()
    # Of counts and in float64: nothing is rounded until the division.
    counts = torch.stack([rows, wrong]).double()
    both = counts @ counts.mT
    alone = both.diagonal(dim1=1, dim2=2)
    (inside, common), (a, wrong_a), (b, wrong_b) = (
        x.unbind(0) for x in (both[:, first, second], alone[:, first], alone[:, second])
    )
    union = a + b - inside
    n = rows.shape[1]
    spread = (wrong_a * (n - wrong_a) * wrong_b * (n - wrong_b)).sqrt()
    iou = torch.where(union == 0, 1.0, divide(inside, union))
    return torch.stack([iou, divide(n * common - wrong_a * wrong_b, spread)])


def diversity(
    names: Sequence[str], figures: Any, mean_iou: float
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Means over the pairs of some experts, and both figures of each pair.

    Args:
        names: The experts.
        figures: :func:`pairwise` of each image, or their mean, (N, 2, P) or (1, 2, P).
        mean_iou: Mean over the experts of their IoU with the truth.

    Returns:
        ``pairwise_iou``, ``error_correlation`` and ``disagreement_over_error`` (see
        :data:`MEANING`), empty for fewer than two experts; and, by the first two of these keys,
        ``{"a-b": value}``.
    """
    pairs = [f"{a}-{b}" for a, b in combinations(names, 2)]
    if not pairs:
        return {}, {}
    mean = np.asarray(figures, np.float64).reshape(-1, 2, len(pairs)).mean(0)
    keys = ("pairwise_iou", "error_correlation")
    found = dict(zip(keys, mean.mean(1).tolist(), strict=True))
    error = 1 - mean_iou
    found["disagreement_over_error"] = (1 - found["pairwise_iou"]) / error if error else 0.0
    each = {
        k: dict(zip(pairs, row.tolist(), strict=True)) for k, row in zip(keys, mean, strict=True)
    }
    return found, each


def diversity_told(figures: Mapping[str, float]) -> str:
    """The figures of :func:`diversity` in one line."""
    return (
        f"errors of two experts correlate at {figures['error_correlation']:.2f}, D = "
        f"{figures['disagreement_over_error']:.2f}"
    )

"""Measures how honest probabilities are, and fits the temperature and offset that make them so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15
PIXELS = 4096
"""Of each image, at most, a fit looks at."""


def reliability(prob: Tensor, truth: Tensor) -> Tensor:
    """Share of an image's pixels in each bin of probability, their mean probability and share of
    object, both times that share: (15, 3). An average over images gives each the same weight.

    Args:
        prob: Foreground probability, (H, W).
        truth: Ground truth in {0, 1}, (H, W).
    """
    flat = prob.flatten().double().cpu()
    values = torch.stack([torch.ones_like(flat), flat, truth.flatten().double().cpu()], dim=1)
    bins = (flat * BINS).long().clamp(0, BINS - 1)
    return torch.zeros(BINS, 3, dtype=torch.double).index_add_(0, bins, values) / len(flat)


def expected_calibration_error(table: Tensor) -> float:
    """Mean distance of probability and share of object over the bins, in [0, 1].

    Paper: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        table: Mean of :func:`reliability` over images.
    """
    return float((table[:, 1] - table[:, 2]).abs().sum() / table[:, 0].sum())


def fit_calibration(logits: Sequence[Tensor], truths: Sequence[Tensor]) -> tuple[float, float]:
    """Temperature and offset with which logits / temperature + offset explain the truths best.

    Args:
        logits: Of each validation image, (H, W).
        truths: In {0, 1}, of the same sizes.

    Returns:
        ``temperature`` above 0 and ``offset``, for :class:`Combiner`.

    Raises:
        ValueError: There is no image.
    """
    if not logits:
        raise ValueError("a calibration needs validation images, and there are none")
    x, y = (torch.stack([_sampled(each) for each in maps]) for maps in (logits, truths))
    inverse = torch.zeros((), dtype=torch.double, requires_grad=True)  # log of 1 / temperature
    offset = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([inverse, offset], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x * inverse.exp() + offset, y)
        loss.backward()
        return loss

    optimiser.step(closure)
    return float((-inverse.detach()).exp()), float(offset.detach())


def _sampled(values: Tensor) -> Tensor:
    """As many pixels of every image, evenly drawn, (PIXELS,)."""
    flat = values.flatten()
    # In float64: float32 counts to 2²⁴ alone.
    places = torch.linspace(0, len(flat) - 1, PIXELS, dtype=torch.double, device=flat.device)
    return flat[places.long()].double().cpu()

"""How evenly a router loads the experts, and the processes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def expert_load(loads: Sequence[Sequence[Sequence[int]]], names: Sequence[str]) -> dict[str, Any]:
    """Imbalance of the choices, as largest over mean, 1 at perfect balance.

    Args:
        loads: Images routed to each expert, by rank, step and expert.
        names: Of the experts.

    Returns:
        ``images_per_step[rank][name]``; ``between_experts`` over all ranks and steps;
        ``between_ranks[name]``, the mean over the steps in which anybody chose the expert.
    """
    counts = torch.tensor(loads, dtype=torch.float64)  # rank, step, expert
    if counts.numel() == 0:
        return {}
    totals = counts.sum((0, 1))
    mean_of_ranks = counts.mean(0)
    ratio = counts.amax(0) / mean_of_ranks.clamp(min=1e-9)
    used = mean_of_ranks > 0
    between = (ratio * used).sum(0) / used.sum(0).clamp(min=1)
    per_step = counts.mean(1)
    return dict(
        images_per_step=[dict(zip(names, rank.tolist(), strict=True)) for rank in per_step],
        between_experts=float(totals.max() / totals.mean()),
        between_ranks=dict(zip(names, between.tolist(), strict=True)),
    )

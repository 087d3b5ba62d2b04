"""Whether an exported model computes what the model computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from codmoe.models.moe import ModelLevelMoE

TOLERANCE = 1e-4
"""Largest difference that a probability or a weight may have."""
COMPARED = ("probability", "weights", "routing")


def compare(
    model: ModelLevelMoE,
    exported: Callable[[Tensor], Mapping[str, Tensor]],
    images: Tensor,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Hold an exported model against the model itself, which runs only the chosen experts.

    The whole batch, its first image alone and its other images are predicted, so that a batch size
    that went into the graph as a constant shows.

    Args:
        model: Stays as it is.
        exported: uint8 images (N, 3, H, W) → named tensors.
        images: uint8 RGB, (N, 3, H, W).
        tolerance: Of probabilities and weights.

    Returns:
        Largest absolute difference of ``probability``, ``logits``, ``weights`` and ``routing``;
        ``undecided``, the number of images left out because the router holds the last expert chosen
        and the first one left out for equal, within the tolerance.

    Raises:
        ValueError: A difference is larger than the tolerance, or other experts were chosen.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    found: dict[str, float] = dict(probability=0.0, logits=0.0, weights=0.0, routing=0.0)
    left_out = set()
    rows = torch.arange(len(images))
    for batch in (rows, rows[:1], rows[1:]):
        if not len(batch):
            continue
        expected, margin = _expected(model, images[batch])
        given = exported(images[batch])
        same = (given["indices"] == expected["indices"]).all(1)
        if (~same & (margin > tolerance)).any():
            raise ValueError(
                f"the export chooses other experts than the model on {int((~same).sum())} of "
                f"{len(batch)} images; it was not kept"
            )
        left_out.update(batch[~same].tolist())
        for name in found:
            a, b = expected[name][same], given[name][same]
            if a.shape != b.shape:
                raise ValueError(f"the export's {name} is {tuple(b.shape)}, not {tuple(a.shape)}")
            if len(a):
                difference = (a - b).abs().nan_to_num(nan=float("inf")).max()
                found[name] = max(found[name], float(difference))
    worst = max(COMPARED, key=lambda name: found[name])
    if found[worst] > tolerance:
        raise ValueError(
            f"the export's {worst} differs from the model's by up to {found[worst]:.2g}, more than "
            f"{tolerance:g}; it was not kept"
        )
    if len(left_out) == len(images):
        raise ValueError("the router is undecided on every image; give others to compare on")
    return dict(found, undecided=len(left_out))


@torch.no_grad()
def _expected(model: ModelLevelMoE, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The model's tensors, and by how much its last choice was ahead (N,)."""
    batch = model.data_preprocessor(dict(inputs=images))["inputs"]
    logits, decision, _ = model.mixture(batch)
    k = decision.indices.shape[1]
    ordered = decision.logits.sort(dim=1, descending=True).values
    # Of the chosen ones among each other, too: their order is part of the answer.
    margin = -ordered[:, : k + 1].diff(dim=1)
    margin = margin.amin(1) if margin.shape[1] else torch.full((len(images),), float("inf"))
    expected = dict(
        probability=logits.sigmoid(),
        logits=logits,
        weights=decision.weights,
        indices=decision.indices,
        routing=decision.probabilities,
    )
    return expected, margin

"""Typed values that travel between backbone, router, experts, combiner and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


@dataclass
class RoutingDecision:
    """Choice of experts for each image, and their weights.

    Args:
        logits: Router logits without noise, (N, E).
        probabilities: Softmax of ``logits`` over all experts, (N, E); rows sum to 1.
        indices: Chosen experts per image, (N, k), into ``expert_names``.
        weights: Mixture weights of the chosen experts, (N, k); rows sum to 1.
        expert_names: Names in the order of the expert axis, length E.
        top_k: How many of ``indices``, the best first, are chosen outside training; None for all.
        everywhere: Experts that every image takes, where that is known without looking at
            ``indices``; None otherwise.
    """

    logits: Tensor
    probabilities: Tensor
    indices: Tensor
    weights: Tensor
    expert_names: tuple[str, ...] = ()
    top_k: int | None = None
    everywhere: tuple[str, ...] | None = None

    def forced(self, names: Sequence[str]) -> RoutingDecision:
        """The decision with these experts for every image, with equal weights.

        Nothing is copied from the host, so that a CUDA graph can hold it.
        """
        n, k = len(self.indices), len(names)
        slots = [self.indices.new_full((n,), self.expert_names.index(name)) for name in names]
        return replace(
            self,
            indices=torch.stack(slots, dim=1),
            weights=self.weights.new_full((n, k), 1 / k),
            top_k=None,
            everywhere=tuple(names),
        )

    def as_info(self) -> dict:
        """The dictionary that ``model(images, return_routing_info=True)`` hands to users."""
        return dict(
            expert_names=list(self.expert_names),
            logits=self.logits,
            probabilities=self.probabilities,
            top_k_indices=self.indices,
            top_k_weights=self.weights,
        )


@dataclass
class ExpertOutput:
    """Output of one expert for the M images it was given.

    Args:
        logits: The expert's prediction, (M, 1, h, w) at its own resolution.
        side_logits: Further supervised maps, each (M, 1, h_i, w_i); empty if there are none.
        rows: Index of each of the M images in the batch, (M,); None means the whole batch in order.
        extra: Tensors (M, ...) that only the expert's own loss reads (UJSC keeps its image here).
    """

    logits: Tensor
    side_logits: list[Tensor] = field(default_factory=list)
    rows: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def of_images(self, index: Tensor) -> ExpertOutput:
        """What the expert made of some of its images, ``index`` (K,) of the M."""
        return ExpertOutput(
            logits=self.logits[index],
            side_logits=[logits[index] for logits in self.side_logits],
            extra={key: value[index] for key, value in self.extra.items()},
        )


class CODDataSample(BaseDataElement):
    """One image's annotation and results, as datasets make it and metrics read it.

    Data fields (each absent until somebody sets it):
        gt_mask: Ground truth at the original resolution, uint8 in {0, 1}, (H0, W0).
        target: Ground truth at network resolution, float in {0, 1}, (1, H, W).
        pred_prob: Foreground probability of the mixture at the original resolution, (H0, W0).
        expert_probs: ``{name: (H0, W0)}`` for every expert, when all of them were run.
        routing: ``{"probabilities": (E,), "indices": (k,), "weights": (k,), "expert_names":
        [...]}``.

    Metainfo: ``img_path``, ``mask_path``, ``stem``, ``dataset`` (name shown in tables),
    ``ori_shape`` (H0, W0), ``img_shape`` (H, W).
    """

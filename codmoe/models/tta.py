"""Test-time augmentation: the mean of what a model says of flipped and scaled copies."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codmoe.models.combiners import mix_probabilities
from codmoe.models.dispatch import padded_to
from codmoe.models.moe import Evaluator, Mixture, ModelLevelMoE, RunState
from codmoe.structures import ExpertOutput, RoutingDecision


class AugmentedMoE:
    """Evaluates in place of a model: each image at several scales and mirrored, averaged.

    Probabilities are averaged, of the mixture and, where asked for, of every expert. The decision
    is the router's on the image as it is. What evaluated for the model before, such as
    :class:`CompiledMoE`, evaluates the copies. Images come in at :attr:`input_size`, the largest of
    the scales, so that larger ones have the photo's detail, and are made smaller on the device.

    Args:
        model: The model.
        size: Width and height of scale 1.
        flip: Mirror left to right as well.
        scales: Factors on the size; others than 1 are rounded to what the backbone divides by.

    Raises:
        ValueError: A scale is no positive number, or there are none.
    """

    def __init__(
        self,
        model: ModelLevelMoE,
        size: tuple[int, int],
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ):
        check_scales(scales)
        divisor, scales = model.backbone.size_divisor, sorted(set(scales))

        def scaled(side: int, scale: float) -> int:
            return side if scale == 1 else max(round(side * scale / divisor), 1) * divisor

        self.sizes = [(scaled(size[1], s), scaled(size[0], s)) for s in scales]
        self.input_size = self.sizes[-1][::-1]
        """Width and height that images are to have."""
        self.plain = min(range(len(scales)), key=lambda i: abs(math.log(scales[i])))
        self.flips = (False, True) if flip else (False,)
        self.divisor = divisor
        alone = copy.copy(model)
        alone.run_state = RunState()
        self.inner: Evaluator = model.run_state.prepared or alone
        model.run_state.prepared = self

    def mixture(self, images: Tensor, *, dense: bool = False) -> Mixture:
        """See :meth:`ModelLevelMoE.mixture`; outputs of experts only where ``dense``."""
        size, views, kept = tuple(images.shape[-2:]), [], []
        for index, (height, width) in enumerate(self.sizes):
            view = images
            if (height, width) != size:
                view = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
            for flip in self.flips:
                found = self.inner.mixture(view.flip(-1) if flip else view, dense=dense)
                views.append(self._maps(found, (height, width), size, flip, dense))
                if index == self.plain and not flip:
                    kept.append(found)
        stacked = torch.stack(views, dim=2)  # (N, 1 + E, views, H, W)
        log_weight = stacked.new_tensor(-math.log(len(views)))
        merged = torch.cat([mix_probabilities(maps, log_weight) for maps in stacked.unbind(1)], 1)
        ((_, decision, outputs),) = kept
        padded = padded_to(merged[:, 1:], self.divisor) if dense else merged[:, 1:]
        names = list(outputs) if dense else []
        return (
            merged[:, :1],
            decision,
            {name: ExpertOutput(logits=padded[:, i : i + 1]) for i, name in enumerate(names)},
        )

    def _maps(
        self,
        found: tuple[Tensor, RoutingDecision, Mapping[str, ExpertOutput]],
        view: tuple[int, int],
        size: tuple[int, ...],
        flip: bool,
        dense: bool,
    ) -> Tensor:
        """Logits of the mixture and, where dense, of each expert, as the images lie."""
        logits, _, outputs = found
        maps = [logits.float()]
        if dense:
            padded = tuple(side + -side % self.divisor for side in view)
            for output in outputs.values():
                full = F.interpolate(output.logits.float(), padded, mode="bilinear")
                maps.append(full[..., : view[0], : view[1]])
        joined = torch.cat(maps, dim=1)
        if view != size:
            joined = F.interpolate(joined, size, mode="bilinear", align_corners=False)
        return joined.flip(-1) if flip else joined


def check_scales(scales: Sequence[float]) -> None:
    """Raises ValueError unless these are factors on an image's size."""
    if not scales or not all(0.1 <= scale <= 4 for scale in scales):
        raise ValueError(f"scales={list(scales)}: give factors from 0.1 to 4, such as 0.75 1 1.25")

"""Combiners make one map of the chosen experts' maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codmoe.models.layers import resize_to
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput, RoutingDecision


def mix_probabilities(maps: Tensor, log_weights: Tensor) -> Tensor:
    """Logits (N, k, H, W) and log weights (broadcastable) → logits of the mixture (N, 1, H, W)."""
    foreground = torch.logsumexp(log_weights + F.logsigmoid(maps), dim=1, keepdim=True)
    background = torch.logsumexp(log_weights + F.logsigmoid(-maps), dim=1, keepdim=True)
    return foreground - background


class Combiner(nn.Module, ABC):
    """{name: ExpertOutput} and a decision → logits (N, 1, H, W).

    Args:
        expert_names: Names of the experts in order; the model fills this in.
        learn_temperature: Whether the result is divided by a learned temperature, which starts at
            1 (Guo et al., On Calibration of Modern Neural Networks, ICML 2017). Averaging maps
            leaves them soft where experts disagree, and measures over all thresholds (PraNet's
            mDice) count that; the mask at 0.5 stays the same.
    """

    def __init__(self, *, expert_names: Sequence[str], learn_temperature: bool = False):
        super().__init__()
        self.expert_names = tuple(expert_names)
        self.log_temperature = nn.Parameter(torch.zeros(())) if learn_temperature else None

    def forward(
        self, outputs: dict[str, ExpertOutput], decision: RoutingDecision, size: tuple[int, int]
    ) -> Tensor:
        """Combine.

        Args:
            outputs: Output of every expert that ran; experts nobody chose may be absent.
            decision: Choice and weights of N images.
            size: Height and width of the result.

        Returns:
            Logits in float32, (N, 1, *size).
        """
        maps = into_slots(outputs, decision, size, "logits")
        confidence = (
            into_slots(outputs, decision, size, "confidence") if self.reads_confidence else None
        )
        return self.from_slots(maps, decision, confidence)

    def from_slots(
        self, maps: Tensor, decision: RoutingDecision, confidence: Tensor | None
    ) -> Tensor:
        """Likewise, from maps that lie where the decision chose them; see :meth:`combine`."""
        mixed = self.combine(maps, decision, confidence)
        return mixed if self.log_temperature is None else mixed * (-self.log_temperature).exp()

    reads_confidence = False
    mix = staticmethod(mix_probabilities)

    @abstractmethod
    def combine(self, maps: Tensor, decision: RoutingDecision, confidence: Tensor | None) -> Tensor:
        """Logits of the chosen experts (N, k, H, W) in the order of ``decision.indices`` →
        (N, 1, H, W). ``confidence`` is of the same shape, 0.5 where an expert gives none.
        """


def into_slots(
    outputs: dict[str, ExpertOutput],
    decision: RoutingDecision,
    size: tuple[int, int],
    field: str,
) -> Tensor:
    """Puts each expert's maps where the decision chose it: (N, k, H, W) in float32.

    Differentiable in the maps. An expert's images that the decision did not route to it (dense
    execution) are left out.
    """
    n, k = decision.indices.shape
    default = 0.5 if field == "confidence" else 0.0
    reference = next(iter(outputs.values())).logits
    slots = torch.full((n, k, *size), default, device=reference.device)
    for name, output in outputs.items():
        value = getattr(output, field)
        if value is None:
            continue
        value = resize_to(value.float(), size)[:, 0]
        chosen = decision.indices == decision.expert_names.index(name)
        if output.rows is None:
            # As a mask rather than by index: no wait for the device.
            slots = torch.where(chosen[..., None, None], value.unsqueeze(1), slots)
            continue
        here = chosen[output.rows]
        merged = torch.where(here[..., None, None], value.unsqueeze(1), slots[output.rows])
        slots = slots.index_copy(0, output.rows, merged)
    return slots


@MODELS.register_module()
class LogitCombiner(Combiner):
    """Weighted sum of logits: a geometric mean of odds, decided by whoever is surest."""

    def combine(self, maps: Tensor, decision: RoutingDecision, confidence: Tensor | None) -> Tensor:
        """See :class:`Combiner`."""
        return (maps * decision.weights[..., None, None]).sum(1, keepdim=True)


@MODELS.register_module()
class ProbabilityCombiner(Combiner):
    """Weighted sum of probabilities, returned as logits.

    Computed as log Σ w·σ(l) − log Σ w·σ(−l), which stays exact where a probability rounds to 0 or
    1.
    """

    def combine(self, maps: Tensor, decision: RoutingDecision, confidence: Tensor | None) -> Tensor:
        """See :class:`Combiner`."""
        return self.mix(maps, decision.weights.clamp(min=1e-12).log()[..., None, None])


@MODELS.register_module()
class PixelCombiner(Combiner):
    """Learned weights per pixel: a small network shared by all experts reads each map, its
    probability and confidence and the expert's name, and corrects the router's log weight.

    The last convolution starts at zero, so training starts from :class:`ProbabilityCombiner`.

    Args:
        channels: Width of the network.
        stride: The correction is computed on maps reduced by this factor, then upsampled.
    """

    reads_confidence = True

    def __init__(
        self,
        *,
        expert_names: Sequence[str],
        channels: int = 32,
        stride: int = 4,
        learn_temperature: bool = False,
    ):
        super().__init__(expert_names=expert_names, learn_temperature=learn_temperature)
        self.stride = stride
        self.embedding = nn.Embedding(len(expert_names), channels)
        self.inner = nn.Conv2d(5, channels, 3, padding=1)
        self.outer = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1),
        )
        last = cast(nn.Conv2d, self.outer[-1])
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def combine(self, maps: Tensor, decision: RoutingDecision, confidence: Tensor | None) -> Tensor:
        """See :class:`Combiner`."""
        n, k, height, width = maps.shape
        log_weights = decision.weights.clamp(min=1e-12).log()[..., None, None]
        probability = maps.sigmoid()
        # What the others say is evidence too.
        mixture = (
            (decision.weights[..., None, None] * probability).sum(1, keepdim=True).expand_as(maps)
        )
        features = torch.stack(
            [
                maps.clamp(-10, 10) / 10,
                probability,
                mixture,
                torch.full_like(maps, 0.5) if confidence is None else confidence,
                log_weights.expand_as(maps),
            ],
            dim=2,
        ).flatten(0, 1)
        small = (max(height // self.stride, 1), max(width // self.stride, 1))
        x = self.inner(resize_to(features, small))
        x = x + self.embedding(decision.indices.flatten())[..., None, None]
        correction = resize_to(self.outer(x).float(), (height, width)).view(n, k, height, width)
        return self.mix(maps, torch.log_softmax(log_weights + correction, dim=1))

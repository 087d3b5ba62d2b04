"""Combiners make one map of the chosen experts' maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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
        temperature: The result is divided by it, too. With ``offset`` it is what a calibration on
            validation images found, and is stored with the weights in their config.
        offset: Added to the result in the end; above 0, masks at 0.5 are larger.

    Raises:
        ValueError: ``temperature`` is not above 0.
    """

    def __init__(
        self,
        *,
        expert_names: Sequence[str],
        learn_temperature: bool = False,
        temperature: float = 1.0,
        offset: float = 0.0,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"combiner.temperature={temperature} must be above 0")
        self.temperature, self.offset = temperature, offset
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
        return self.from_slots(into_slots(outputs, decision, size), decision)

    def from_slots(self, maps: Tensor, decision: RoutingDecision) -> Tensor:
        """Likewise, from maps that lie where the decision chose them; see :meth:`combine`.

        Raises:
            ValueError: :meth:`combine` returned something else than maps (N, 1, H, W).
        """
        mixed = self.combine(maps, decision)
        if mixed.ndim != 4 or mixed.shape[1] != 1:
            raise ValueError(
                f"{type(self).__name__}.combine returned {tuple(mixed.shape)}; return one map for "
                "each image, (N, 1, H, W)"
            )
        return self.calibrated(mixed)

    def calibrated(self, mixed: Tensor) -> Tensor:
        """Logits of the mixture under the temperatures and the offset."""
        if self.log_temperature is not None:
            mixed = mixed * (-self.log_temperature).exp()
        if (self.temperature, self.offset) == (1.0, 0.0):
            return mixed
        return mixed / self.temperature + self.offset

    mix = staticmethod(mix_probabilities)

    @abstractmethod
    def combine(self, maps: Tensor, decision: RoutingDecision) -> Tensor:
        """Logits of the chosen experts (N, k, H, W) in the order of ``decision.indices`` →
        (N, 1, H, W).
        """


def into_slots(
    outputs: dict[str, ExpertOutput], decision: RoutingDecision, size: tuple[int, int]
) -> Tensor:
    """Puts each expert's map where the decision chose it: (N, k, H, W) in float32.

    Differentiable in the maps. An expert's images that the decision did not route to it (dense
    execution) are left out.
    """
    n, k = decision.indices.shape
    slots = torch.zeros(n, k, *size, device=next(iter(outputs.values())).logits.device)
    for name, output in outputs.items():
        value = resize_to(output.logits.float(), size)[:, 0]
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

    def combine(self, maps: Tensor, decision: RoutingDecision) -> Tensor:
        """See :class:`Combiner`."""
        return (maps * decision.weights[..., None, None]).sum(1, keepdim=True)


@MODELS.register_module()
class ProbabilityCombiner(Combiner):
    """Weighted sum of probabilities, returned as logits.

    Computed as log Σ w·σ(l) − log Σ w·σ(−l), which stays exact where a probability rounds to 0 or
    1.
    """

    def combine(self, maps: Tensor, decision: RoutingDecision) -> Tensor:
        """See :class:`Combiner`."""
        return self.mix(maps, decision.weights.clamp(min=1e-12).log()[..., None, None])

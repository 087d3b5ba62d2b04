"""The model cut into graphs with plain tensors in and out, for exporters that know no dataclasses.

Images are uint8 RGB; normalisation is part of every graph that reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from codmoe.models.dispatch import PyramidBank
from codmoe.models.layers import resize_to
from codmoe.models.moe import ModelLevelMoE
from codmoe.structures import RoutingDecision

LEVELS = ("f1", "f2", "f3", "f4")
MAPS = ("probability", "logits")
ROUTING = ("weights", "indices", "routing")


class Graph(nn.Module):
    """A piece of the model; holds the parts it needs and no others.

    Attributes:
        inputs: Names of the arguments of ``forward``.
        outputs: Names of what it returns.
    """

    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ()

    def __init__(self, whole: ModelLevelMoE, **parts: nn.Module):
        super().__init__()
        before = whole.data_preprocessor
        # Not "mean": without its optimiser the exporter gives a node that name, too.
        self.register_buffer("pixel_mean", before.mean.clone())
        self.register_buffer("pixel_std", before.std.clone())
        for name, part in parts.items():
            self.add_module(name, part)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) → what the model's ``forward`` takes."""
        return (images.float() - self.pixel_mean) / self.pixel_std


class WholeGraph(Graph):
    """Images → mixture and routing; every expert runs on every image, for a graph cannot choose."""

    outputs = MAPS + ROUTING

    def __init__(self, model: ModelLevelMoE):
        super().__init__(model, model=model)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, H, W) → probability and logits (N, 1, H, W), weights and indices (N, k) of
        the chosen experts, the router's probability of every expert (N, E).
        """
        logits, decision, _ = self.model.mixture(self.normalised(images), dense=True)
        return logits.sigmoid(), logits, decision.weights, decision.indices, decision.probabilities


class PyramidGraph(Graph):
    """Images → routing and pyramid."""

    outputs = ROUTING + LEVELS

    def __init__(self, model: ModelLevelMoE):
        super().__init__(model, backbone=model.backbone, router=model.router)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, H, W) → weights, indices (N, k), routing (N, E), four maps."""
        images = self.normalised(images)
        pyramid = self.backbone(images)
        decision = self.router(images, pyramid)
        return decision.weights, decision.indices, decision.probabilities, *pyramid


class ScalesGraph(Graph):
    """Images → their pyramids at further scales, for the experts that read such."""

    def __init__(self, model: ModelLevelMoE, scales: Sequence[float]):
        super().__init__(model, backbone=model.backbone)
        self.scales = tuple(scales)
        self.outputs = tuple(name for scale in self.scales for name in level_names(scale))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, H, W) → four maps for each scale."""
        images = self.normalised(images)
        bank = PyramidBank(images, [], self.backbone, self.backbone.size_divisor)
        return tuple(level for scale in self.scales for level in bank.get(scale, None))


class ExpertGraph(Graph):
    """Images and pyramids → one expert's map at the size of the images."""

    def __init__(self, model: ModelLevelMoE, name: str, size: tuple[int, int]):
        super().__init__(model, expert=model.experts[name])
        self.size = size
        scales = self.expert.input_scales
        self.inputs = ("images", *(level for scale in scales for level in level_names(scale)))
        self.outputs = ("logits", "confidence") if model.combiner.reads_confidence else ("logits",)

    def forward(self, images: Tensor, *levels: Tensor) -> tuple[Tensor, ...]:
        """uint8 (M, 3, H, W) and four maps for each of its scales → logits (M, 1, H, W) and, for a
        combiner that reads it, confidence of the same shape.
        """
        pyramids = [list(levels[i : i + 4]) for i in range(0, len(levels), 4)]
        output = self.expert(self.normalised(images), pyramids)
        logits = resize_to(output.logits, self.size)
        if "confidence" not in self.outputs:
            return (logits,)
        if output.confidence is None:
            return logits, logits * 0 + 0.5  # as the combiner reads it
        return logits, resize_to(output.confidence, self.size)


class CombinerGraph(Graph):
    """Maps of the chosen experts → mixture."""

    outputs = MAPS

    def __init__(self, model: ModelLevelMoE):
        super().__init__(model, combiner=model.combiner)
        confidence = ("confidence",) if model.combiner.reads_confidence else ()
        self.inputs = ("maps", "weights", "indices", *confidence)

    def forward(self, maps: Tensor, weights: Tensor, indices: Tensor, *rest: Tensor) -> tuple:
        """Logits of the chosen experts (N, k, H, W), their weights and indices (N, k) and, for a
        combiner that reads it, confidence (N, k, H, W) → probability, logits (N, 1, H, W).
        """
        # A combiner reads choice and weights of a decision, never what they were made of.
        decision = RoutingDecision(
            weights, weights, indices, weights, expert_names=self.combiner.expert_names
        )
        logits = self.combiner.from_slots(maps, decision, rest[0] if rest else None)
        return logits.sigmoid(), logits


def level_names(scale: float) -> tuple[str, ...]:
    """Names of the four maps at an image scale: ``f1``, or ``f1_x0.5``."""
    return LEVELS if scale == 1.0 else tuple(f"{level}_x{scale:g}" for level in LEVELS)

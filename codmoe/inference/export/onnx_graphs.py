"""The model cut into graphs with plain tensors in and out, and these as ONNX files.

Images are uint8 RGB; normalisation is part of every graph that reads them. One dense graph runs
every expert; a bundle of graphs runs the chosen ones alone.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codmoe.inference.export.replacements import for_onnx
from codmoe.messages import hushed
from codmoe.models.backbones.base import Backbone
from codmoe.models.combiners import Combiner
from codmoe.models.dispatch import Passes, PyramidBank
from codmoe.models.experts.base import Expert
from codmoe.models.layers import resize_to
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers.base import Router
from codmoe.structures import RoutingDecision

OPSET = 18
WHOLE = "model.onnx"
PYRAMID, SCALES, COMBINER = "backbone_router.onnx", "backbone_scales.onnx", "combiner.onnx"
LEVELS = ("f1", "f2", "f3", "f4")
MAPS = ("probability", "logits")
ROUTING = ("weights", "indices", "routing")
WASTE = 0.1
"""Passes of the backbone that an image may take in vain, on average, for one graph instead of two
that both hold the backbone's weights."""


class Graph(nn.Module):
    """A piece of the model; holds the parts it needs and no others.

    Attributes:
        inputs: Names of the arguments of ``forward``.
        outputs: Names of what it returns.
    """

    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ()
    pixel_mean: Tensor
    pixel_std: Tensor

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


def outputs_of(logits: Tensor, decision: RoutingDecision) -> dict[str, Tensor]:
    """What an exported model returns, by its names in their order."""
    routed = (decision.weights, decision.indices, decision.probabilities)
    return dict(zip(MAPS + ROUTING, (logits.sigmoid(), logits, *routed), strict=True))


class WholeGraph(Graph):
    """Images → mixture and routing; every expert runs on every image, for a graph cannot choose."""

    outputs = MAPS + ROUTING
    model: ModelLevelMoE

    def __init__(self, model: ModelLevelMoE):
        super().__init__(model, model=model)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, H, W) → probability and logits (N, 1, H, W), weights and indices (N, k) of
        the chosen experts, the router's probability of every expert (N, E).
        """
        logits, decision, _ = self.model.mixture(self.normalised(images), dense=True)
        return tuple(outputs_of(logits, decision).values())


class PyramidGraph(Graph):
    """Images → routing, and their pyramids at scale 1 and others that nearly every choice reads."""

    backbone: Backbone
    router: Router

    def __init__(self, model: ModelLevelMoE, scales: Sequence[float]):
        super().__init__(model, backbone=model.backbone, router=model.router)
        self.scales = (1.0, *scales)
        self.outputs = ROUTING + tuple(n for scale in self.scales for n in level_names(scale))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, H, W) → weights, indices (N, k), routing (N, E), four maps a scale."""
        images = self.normalised(images)
        bank = PyramidBank(images, Passes.of(self.backbone))
        decision = self.router(images, bank.get(1.0, None))
        levels = (level for scale in self.scales for level in bank.get(scale, None))
        return decision.weights, decision.indices, decision.probabilities, *levels


class ScalesGraph(Graph):
    """Images → their pyramids at further scales, for the experts that read such."""

    backbone: Backbone

    def __init__(self, model: ModelLevelMoE, scales: Sequence[float]):
        super().__init__(model, backbone=model.backbone)
        self.scales = tuple(scales)
        self.outputs = tuple(name for scale in self.scales for name in level_names(scale))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, H, W) → four maps for each scale."""
        images = self.normalised(images)
        bank = PyramidBank(images, Passes.of(self.backbone))
        return tuple(level for scale in self.scales for level in bank.get(scale, None))


class ExpertGraph(Graph):
    """Images and pyramids → one expert's map at the size of the images."""

    outputs = ("logits",)
    expert: Expert

    def __init__(self, model: ModelLevelMoE, name: str, size: tuple[int, int]):
        super().__init__(model, expert=model.experts[name])
        self.size = size
        scales = self.expert.input_scales
        self.inputs = ("images", *(level for scale in scales for level in level_names(scale)))

    def forward(self, images: Tensor, *levels: Tensor) -> tuple[Tensor, ...]:
        """uint8 (M, 3, H, W) and four maps for each of its scales → logits (M, 1, H, W)."""
        pyramids = [list(levels[i : i + 4]) for i in range(0, len(levels), 4)]
        output = self.expert(self.normalised(images), pyramids)
        return (resize_to(output.logits, self.size),)


class CombinerGraph(Graph):
    """Maps of the chosen experts → mixture."""

    inputs = ("maps", "weights", "indices")
    outputs = MAPS
    combiner: Combiner

    def __init__(self, model: ModelLevelMoE):
        super().__init__(model, combiner=model.combiner)

    def forward(self, maps: Tensor, weights: Tensor, indices: Tensor) -> tuple:
        """Logits of the chosen experts (N, k, H, W), their weights and indices (N, k) →
        probability, logits (N, 1, H, W).
        """
        # A combiner reads choice and weights of a decision, never what they were made of.
        decision = RoutingDecision(
            weights, weights, indices, weights, expert_names=self.combiner.expert_names
        )
        logits = self.combiner.from_slots(maps, decision)
        return logits.sigmoid(), logits


def level_names(scale: float) -> tuple[str, ...]:
    """Names of the four maps at an image scale: ``f1``, or ``f1_x0.5``."""
    return LEVELS if scale == 1.0 else tuple(f"{level}_x{scale:g}" for level in LEVELS)


def write_dense(model: ModelLevelMoE, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Writes ``model.onnx``: uint8 images (N, 3, H, W) with N free → mixture and routing.

    Returns:
        What the manifest says of it.
    """
    graph = WholeGraph(for_onnx(model, size))
    return dict(files={"model": _write(graph, dict(images=_images(size)), folder / WHOLE)})


def write_sparse(model: ModelLevelMoE, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Writes the bundle: backbone with router, one graph an expert, combiner, and the backbone at
    further scales if an expert reads any.

    Returns:
        What the manifest says of it: every file with its inputs and outputs.
    """
    if model.own_blocks:
        raise ValueError(
            "experts with own_blocks cannot be told apart in ONNX; use --format onnx, the whole "
            "model as one graph"
        )
    model = for_onnx(model, size)
    images = dict(images=_images(size))
    known = dict(images)
    files: dict[str, Any] = {}

    def write(key: str, name: str, graph: Graph, values: Mapping[str, Tensor]) -> tuple:
        files[key] = _write(graph, values, folder / name)
        with torch.no_grad():
            return graph(*values.values())

    experts = model.expert_parts.values()
    scales = sorted({s for expert in experts for s in expert.input_scales} - {1.0})
    waste = {scale: _waste(model, scale) for scale in scales}
    graph: Graph = PyramidGraph(model, [s for s in scales if waste[s] <= WASTE])
    known.update(zip(graph.outputs, write("pyramid", PYRAMID, graph, images), strict=True))
    if max(waste.values(), default=0.0) > WASTE:
        graph = ScalesGraph(model, [s for s in scales if waste[s] > WASTE])
        known.update(zip(graph.outputs, write("scales", SCALES, graph, images), strict=True))
    for name in model.expert_names:
        graph = ExpertGraph(model, name, size)
        values = {key: known[key] for key in graph.inputs}
        (found,) = write(f"expert_{name}", f"expert_{name}.onnx", graph, values)
    graph = CombinerGraph(model)
    maps = found.expand(-1, model.router.top_k, -1, -1).contiguous()
    values = dict(maps=maps, weights=known["weights"], indices=known["indices"])
    write("combiner", COMBINER, graph, values)
    return dict(files=files)


def _waste(model: ModelLevelMoE, scale: float) -> float:
    """Cost of a pass at this scale, in passes at scale 1, times the share of choices in which no
    expert reads it.
    """
    others = sum(scale not in expert.input_scales for expert in model.expert_parts.values())
    k = model.router.top_k
    return scale**2 * comb(others, k) / comb(len(model.experts), k)


def require_onnx() -> None:
    """Raises:
    ValueError: A package is missing that writing or checking ONNX needs.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise ValueError(
                f"exporting to ONNX needs {package}, which is not installed; pip install "
                "'codmoe[export]'"
            ) from error


def _images(size: tuple[int, int]) -> Tensor:
    # Two, for a size of 1 would be taken for a constant.
    return torch.zeros(2, 3, *size, dtype=torch.uint8)


def _write(graph: Graph, values: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    graph.eval()
    try:
        program = _translate(graph, values)
    except Exception as error:  # the exporter raises a dozen kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path.stem}: torch has no ONNX for something in this part ({reason[0]}); use "
            "--format torch-export or safetensors"
        ) from error
    # An expert need not read every level.
    kept = [value for value in program.model.graph.inputs if value.uses()]
    program.model.graph.inputs[:] = kept
    program.save(path, external_data=False)
    return dict(file=path.name, inputs=[value.name for value in kept], outputs=list(graph.outputs))


def _translate(graph: Graph, values: Mapping[str, Tensor]) -> torch.onnx.ONNXProgram:
    shapes = _shapes(graph, len(values), torch.export.Dim("batch"))
    # It tells that constants with several outputs are left as they are.
    optimiser = logging.getLogger("onnxscript.optimizer")
    with warnings.catch_warnings(), hushed(optimiser), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            graph, tuple(values.values()), dynamic_shapes=shapes, strict=False
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            verbose=False,
            # torch gives a convolution without bias an expanded zero. Until that is a constant,
            # onnxruntime folds no batch norm into a convolution.
            optimize=True,
        )
        assert program is not None  # with dynamo=True
        return program


def _shapes(graph: Graph, count: int, batch: Any) -> tuple:
    parameters = inspect.signature(graph.forward).parameters.values()
    single = sum(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in parameters)
    shapes = ({0: batch},) * count
    # What a *argument takes is one entry.
    return (*shapes[:single], shapes[single:]) if count > single else shapes

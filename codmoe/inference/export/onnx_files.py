"""ONNX files: one dense graph, or a bundle of graphs of which only the chosen experts' run."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codmoe.inference.export.cut import (
    CombinerGraph,
    ExpertGraph,
    Graph,
    PyramidGraph,
    ScalesGraph,
    WholeGraph,
)
from codmoe.inference.export.replacements import for_onnx
from codmoe.models.moe import ModelLevelMoE

OPSET = 18
WHOLE = "model.onnx"
PYRAMID, SCALES, COMBINER = "backbone_router.onnx", "backbone_scales.onnx", "combiner.onnx"


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
    model = for_onnx(model, size)
    images = dict(images=_images(size))
    known = dict(images)
    files: dict[str, Any] = {}

    def write(key: str, name: str, graph: Graph, values: Mapping[str, Tensor]) -> tuple:
        files[key] = _write(graph, values, folder / name)
        with torch.no_grad():
            return graph(*values.values())

    graph = PyramidGraph(model)
    known.update(zip(graph.outputs, write("pyramid", PYRAMID, graph, images), strict=True))
    scales = sorted({s for expert in model.experts.values() for s in expert.input_scales} - {1.0})
    if scales:
        graph = ScalesGraph(model, scales)
        known.update(zip(graph.outputs, write("scales", SCALES, graph, images), strict=True))
    for name in model.expert_names:
        graph = ExpertGraph(model, name, size)
        values = {key: known[key] for key in graph.inputs}
        found = write(f"expert_{name}", f"expert_{name}.onnx", graph, values)
    graph = CombinerGraph(model)
    maps = [part.expand(-1, model.router.top_k, -1, -1).contiguous() for part in found]
    values = dict(maps=maps[0], weights=known["weights"], indices=known["indices"])
    if "confidence" in graph.inputs:
        values["confidence"] = maps[1]
    write("combiner", COMBINER, graph, values)
    return dict(files=files)


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
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            graph, tuple(values.values()), dynamic_shapes=shapes, strict=False
        )
        return torch.onnx.export(
            exported,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            verbose=False,
            # It takes as long as the rest, and onnxruntime does the same when it loads a graph.
            optimize=False,
        )


def _shapes(graph: Graph, count: int, batch: Any) -> tuple:
    parameters = inspect.signature(graph.forward).parameters.values()
    single = sum(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in parameters)
    shapes = ({0: batch},) * count
    # What a *argument takes is one entry.
    return (*shapes[:single], shapes[single:]) if count > single else shapes

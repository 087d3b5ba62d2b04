"""Exported ONNX graphs with 8-bit weights and values, ranges taken from images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codmoe.inference.export.onnx_runner import OnnxRunner
from codmoe.messages import hushed

OPERATORS = ("Conv", "MatMul", "Gemm")
FLOAT = ("combiner",)
"""Graphs that stay as they are: nothing in them takes long."""


def quantise(folder: Path, images: np.ndarray) -> None:
    """Rewrite the graphs of an exported folder: convolutions and matrix products in 8-bit integers.

    By onnxruntime's static quantisation: weights symmetric and of one scale a channel, values of
    one range a tensor, the smallest and largest that occurred. Every expert sees every image,
    whatever the router chooses.

    Args:
        folder: With its manifest, which then has to be written anew.
        images: uint8 RGB, (N, 3, H, W) of the exported size.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    runner = OnnxRunner(folder)
    for key, entry in runner.manifest["files"].items():
        if key in FLOAT:
            continue
        path, float_path = folder / entry["file"], folder / "float.onnx"
        with hushed(logging.root):  # that some tensors have no range, such as what nothing reads
            # Folds batch norms, whose results would else be rounded apart.
            quant_pre_process(path, float_path, skip_symbolic_shape=True)
            quantize_static(
                float_path,
                path,
                _Reader(_inputs(runner, key, image[None]) for image in images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(OPERATORS),
            )
        os.remove(float_path)


def _inputs(runner: OnnxRunner, key: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph is given for an image. Made for each graph anew: pyramids of thousands of images
    are many gigabytes.
    """
    wanted, known = runner.manifest["files"][key]["inputs"], dict(images=image)
    for before in ("pyramid", "scales"):
        if not known.keys() >= set(wanted):
            known |= runner.run_graph(before, known)
    return {name: known[name] for name in wanted}


class _Reader:
    """onnxruntime's ``CalibrationDataReader``, of which it looks for the method alone."""

    def __init__(self, inputs: Iterator[Mapping[str, Any]]):
        self.inputs = inputs

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.inputs, None)

"""The pieces of a prepared model, compiled once for this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codmoe.compiled import artefact
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.prepared import CompiledMoE
from codmoe.inference.export.onnx_graphs import outputs_of
from codmoe.models.moe import ModelLevelMoE

TOLERANCES = dict(fp32=1e-4, fp16=2e-2, bf16=1e-1)
"""Largest difference that a probability or a weight may have from the model in float32."""


def write(
    model: ModelLevelMoE,
    folder: Path,
    size: tuple[int, int],
    *,
    batches: Sequence[int] = (1,),
    dtype: str = "auto",
) -> float:
    """Compiles every part for all that it is called with, and keeps what that leaves.

    Args:
        model: On the device where it is to run.
        folder: Is there, and empty.
        size: Height and width of the images.
        batches: Numbers of images at a time; groups of one expert's are padded to powers of two.
        dtype: As of :class:`CompiledMoE`.

    Returns:
        The largest difference from the float32 model that its precision allows.

    Raises:
        ValueError: The model is not one that is prepared.
    """
    groups = [2**i for i in range(max(batches).bit_length()) if 2**i < max(batches)]
    settings: dict[str, Any] = dict(batches=list(batches), groups=groups or [1])
    with artefact.recorded(folder):
        prepared = CompiledMoE(model, dtype=dtype, backend="inductor", **settings)
        if prepared.unusable:
            raise ValueError(f"this model is not prepared for speed: {prepared.unusable}")
        prepared.prepare.keep = _telling(prepared.prepare.keep)
        prepared.warm_up(size=size)
    # Of other copies, as those are that it is for: torch.compile marks what it has compiled.
    like = prepared.copies
    copies = PartCopies(model, like.dtype, like.memory_format, fused=like.fused)
    made = artefact.circumstances(copies)
    artefact.write_manifest(folder, made=made, size=list(size), **settings)
    return TOLERANCES[like.dtype]


def _telling(keep: Callable[[str, Callable, tuple], Any] | None) -> Callable:
    """``keep``, which says what it has compiled and how long that took."""
    told: set[str] = set()

    def tell(name: str, function: Callable, arguments: tuple) -> Any:
        started = time.monotonic()
        found = keep and keep(name, function, arguments)
        piece = f"{name}, {' × '.join(map(str, arguments[0].shape))}"
        if piece not in told:
            told.add(piece)
            print(f"{len(told)}: {piece}, {time.monotonic() - started:.0f} s", flush=True)
        return found

    return tell


def load(model: ModelLevelMoE, folder: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """The model on its device, run by what was written, as a function of uint8 images (N, 3, H, W)
    on the CPU.
    """
    prepared = CompiledMoE(model, artefact=folder)
    if prepared.reason:
        raise ValueError(f"what was written cannot be loaded: {prepared.reason}")

    @torch.inference_mode()
    def run(images: Tensor) -> dict[str, Tensor]:
        batch = model.data_preprocessor(dict(inputs=images.to(prepared.device)))["inputs"]
        logits, decision, _ = prepared.mixture(batch)
        found = outputs_of(logits, decision)
        return {name: tensor.cpu() for name, tensor in found.items()}

    return run

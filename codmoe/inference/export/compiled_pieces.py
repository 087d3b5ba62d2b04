"""The pieces of a prepared model, compiled once for this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codmoe.compiled import artefact
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.graphs import keep_compiled
from codmoe.compiled.prepared import CompiledMoE
from codmoe.inference.export.onnx_graphs import outputs_of
from codmoe.messages import note
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
    """Compiles every part for all that it is called with, into packages, and writes a manifest.

    Args:
        model: On the device where it is to run.
        folder: Is there, and empty.
        size: Height and width of the images.
        batches: Numbers of images at a time; groups of one expert's are padded to powers of two.
        dtype: As of :class:`CompiledMoE`.

    Returns:
        The largest difference from the float32 model that its precision allows.

    Raises:
        ValueError: No part can be compiled.
    """
    keep_compiled()
    groups = [2**i for i in range(max(batches).bit_length()) if 2**i < max(batches)]
    settings: dict[str, Any] = dict(batches=list(batches), groups=groups or [1])
    prepared = CompiledMoE(model, dtype=dtype, backend="inductor", **settings)
    if prepared.unusable:
        raise ValueError(f"this model is not prepared for speed: {prepared.unusable}")
    prepared.prepare = recorder = artefact.Recorder(prepared.device)
    prepared.parts = prepared.copies.parts(recorder, overlap=True)
    prepared.warm_up(size=size)
    pieces = []
    for number, (key, (name, function, arguments)) in enumerate(recorder.calls.items(), 1):
        started = time.monotonic()
        path = folder / f"{name.replace('.', '_')}_{number}.pt2"
        try:
            pieces.append(artefact.write_piece(key, function, arguments, path))
        except Exception as error:  # that part is compiled, or runs eagerly, when it is needed
            path.unlink(missing_ok=True)
            reason = (str(error).splitlines() or [""])[0][:160]
            note(f"{name} is left out: {type(error).__name__}: {reason}")
            continue
        shape = " × ".join(map(str, arguments[0].shape))
        seconds = time.monotonic() - started
        print(f"{number} of {len(recorder.calls)}: {name}, {shape}, {seconds:.0f} s", flush=True)
    if not pieces:
        raise ValueError("no part of this model can be compiled")
    # Of other copies, as those are that it is loaded for: torch.compile marks what it has compiled.
    copies = PartCopies(model, prepared.copies.dtype, prepared.copies.memory_format)
    made = artefact.circumstances(copies)
    content = dict(format=artefact.FORMAT, made=made, size=list(size), pieces=pieces, **settings)
    text = json.dumps(content, indent=2) + "\n"
    (folder / artefact.MANIFEST).write_text(text, encoding="utf-8")
    artefact.note_own(folder)
    return TOLERANCES[prepared.copies.dtype]


def load(model: ModelLevelMoE, folder: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """The model on its device, run by what was written, as a function of uint8 images (N, 3, H, W)
    on the CPU.
    """
    prepared = CompiledMoE(model, artefact=folder)

    @torch.inference_mode()
    def run(images: Tensor) -> dict[str, Tensor]:
        batch = model.data_preprocessor(dict(inputs=images.to(prepared.device)))["inputs"]
        logits, decision, _ = prepared.mixture(batch)
        if prepared.artefact is None or prepared.artefact.refused or prepared.artefact.failures:
            raise ValueError(f"what was written cannot be loaded: {prepared.report}")
        found = outputs_of(logits, decision)
        return {name: tensor.cpu() for name, tensor in found.items()}

    return run

"""A model's parts as the engine runs them: copies that follow the model's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from codmoe.engine.speed import FORMATS
from codmoe.inference.folding import ChangeWatch, frozen_copy, overwrite
from codmoe.inference.graphs import Preparer
from codmoe.inference.lanes import Parts
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import suggest

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)


class FrozenModel:
    """Copies of all parts, batch norm folded; backbone and experts in ``dtype``, router and
    combiner in float32, but for the router's convolutions.

    Args:
        model: The model; it is left as it is.
        dtype: Name of a precision, or ``"auto"``; see :class:`CompiledMoE`.
        memory_format: Name of a layout, or ``"auto"``.

    Raises:
        ValueError: A name is unknown.
    """

    def __init__(self, model: ModelLevelMoE, dtype: str, memory_format: str):
        self.model, self.device = model, next(model.parameters()).device
        gpu = self.device.type == "cuda"
        if dtype == "auto":
            dtype = ("bf16" if torch.cuda.is_bf16_supported(False) else "fp16") if gpu else "fp32"
        if memory_format == "auto":
            memory_format = "channels_last" if gpu else "contiguous"
        for key, value, known in (
            ("dtype", dtype, DTYPES),
            ("memory_format", memory_format, FORMATS),
        ):
            if value not in known:
                raise ValueError(f"{key}={value!r} is unknown; {suggest(str(value), known)}")
        self.dtype, self.memory_format = dtype, memory_format
        self.sources = _parts_of(model)
        self.copies = {name: self._copy(name, part) for name, part in self.sources.items()}
        self.watch = ChangeWatch(*self.sources.values())
        reads_confidence = self.copies["combiner"].reads_confidence
        for expert in model.experts:
            self.copies[f"experts.{expert}"].gives_confidence = reads_confidence

    def parts(self, prepare: Preparer, overlap: bool) -> Parts:
        """What a lane calls, compiled if ``prepare`` compiles."""
        model, combiner = self.model, self.copies["combiner"]
        compiled = {name: prepare.compiled(name, part) for name, part in self.copies.items()}
        return Parts(
            backbone=compiled["backbone"],
            router=compiled["router"],
            experts={name: compiled[f"experts.{name}"] for name in model.experts},
            scales={name: tuple(e.input_scales) for name, e in model.experts.items()},
            combine=prepare.compiled("combiner", combiner.combine),
            combiner=combiner,
            size_divisor=model.backbone.size_divisor,
            dtype=DTYPES[self.dtype],
            memory_format=FORMATS[self.memory_format],
            overlap=overlap,
            top_k=model.router.top_k,
        )

    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        self.watch.changed()
        for name, part in self.sources.items():
            overwrite(self.copies[name], self._copy(name, part))

    def check(self) -> None:
        """Raises:
        ValueError: A part was replaced, or ``top_k`` changed.
        """
        parts = _parts_of(self.model)
        same = parts.keys() == self.sources.keys() and all(
            part is self.sources[name] for name, part in parts.items()
        )
        if not same or self.model.router.top_k != self.copies["router"].top_k:
            raise ValueError(
                "parts of the model, or its top_k, were replaced since the engine was built; build "
                "another one"
            )

    def _copy(self, name: str, part: nn.Module) -> nn.Module:
        exact = name in ("router", "combiner")
        form: dict[str, Any] = dict(device=self.device, memory_format=FORMATS[self.memory_format])
        copy = frozen_copy(part, dtype=torch.float32 if exact else DTYPES[self.dtype], **form)
        if hasattr(copy, "convolution_dtype") and DTYPES[self.dtype] != torch.float32:
            copy.convolution_dtype = DTYPES[self.dtype]
        return copy


def _parts_of(model: ModelLevelMoE) -> dict[str, nn.Module]:
    experts = {f"experts.{name}": expert for name, expert in model.experts.items()}
    return dict(backbone=model.backbone, router=model.router, combiner=model.combiner, **experts)

"""Copies of a model's parts for evaluation, faster and equal, which follow the model's weights."""

from __future__ import annotations

import operator
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any, cast

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from codmoe.compiled.buffers import Parts, laid_out
from codmoe.compiled.forms import merge_heads
from codmoe.compiled.graphs import Preparer
from codmoe.compiled.speed import FORMATS
from codmoe.messages import suggest
from codmoe.models.backbones.base import Backbone
from codmoe.models.combiners import Combiner
from codmoe.models.dispatch import Passes
from codmoe.models.experts.base import Expert
from codmoe.models.layers import BatchNorm
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers.base import Router

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)


class PartCopies:
    """Copies of all parts, batch norm folded; backbone and experts in ``dtype``, router and
    combiner in float32, but for the router's convolutions. In 16 bits on a GPU the router's other
    products are taken in TF32, whose factors have 10 bits of mantissa, bf16's 7.

    Args:
        model: The model; it is left as it is.
        dtype: Name of a precision, or ``"auto"``; see :class:`CompiledMoE`.
        memory_format: Name of a layout.
        fused: Whether :func:`merge_heads` is applied, for code that is compiled on a GPU.

    Raises:
        ValueError: A name is unknown.
    """

    def __init__(
        self, model: ModelLevelMoE, dtype: str, memory_format: str, *, fused: bool = False
    ):
        self.fused = fused
        self.model, self.device = model, next(model.parameters()).device
        gpu = self.device.type == "cuda"
        if dtype == "auto":
            dtype = ("bf16" if torch.cuda.is_bf16_supported(False) else "fp16") if gpu else "fp32"
        for key, value, known in (
            ("dtype", dtype, DTYPES),
            ("memory_format", memory_format, FORMATS),
        ):
            if value not in known:
                raise ValueError(f"{key}={value!r} is unknown; {suggest(str(value), known)}")
        self.dtype, self.memory_format = dtype, memory_format
        self.sources = _parts_of(model)
        self.modules = {name: self._copy(name, part) for name, part in self.sources.items()}
        self.watch = ChangeWatch(*self.sources.values())
        self.made_of = self._made_of()

    def parts(self, prepare: Preparer, overlap: bool) -> Parts:
        """What :class:`Buffers` call, compiled if ``prepare`` compiles."""
        model, combiner = self.model, cast(Combiner, self.modules["combiner"])
        if prepare.eager and self.device.type == "cpu":
            for module in self.modules.values():
                pack_linear(module)
        compiled = {name: prepare.compiled(name, part) for name, part in self.modules.items()}
        dtype, memory_format = DTYPES[self.dtype], FORMATS[self.memory_format]
        backbone = cast(Backbone, self.modules["backbone"])

        def cast_all(x: Any) -> Any:
            if isinstance(x, list):
                return [cast_all(each) for each in x]
            return laid_out(x, dtype, memory_format) if isinstance(x, Tensor) else x

        def run(module: nn.Module, call: Callable[..., list[Tensor]], *args: Any) -> list[Tensor]:
            # In that precision and layout, whatever the backbone leaves.
            call = compiled["backbone"] if call is backbone else call
            return cast_all(call(*map(cast_all, args)))

        return Parts(
            passes=Passes.of(backbone, model.own_blocks, run),
            router=self.in_tf32(compiled["router"]),
            experts={name: compiled[f"experts.{name}"] for name in model.experts},
            own={name: self._expert(name).backbone for name in model.experts},
            scales={name: e.input_scales for name, e in model.expert_parts.items()},
            combine=prepare.compiled("combiner", combiner.combine),
            combiner=combiner,
            dtype=dtype,
            memory_format=memory_format,
            overlap=overlap,
            top_k=model.router.top_k,
        )

    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        self.watch.changed()
        for name, part in self.sources.items():
            overwrite(self.modules[name], self._copy(name, part))

    def _made_of(self) -> list[Any]:
        """Modules, tensors, attributes and hooks of the model's parts as they are now. Each call of
        the model waits for it: hence no ``modules()``, which takes half of the time again.
        """
        found: list[Any] = []
        waiting: list[nn.Module | None] = list(_parts_of(self.model).values())
        while waiting:
            module = waiting.pop()
            if module is None:
                continue
            values = vars(module).values()
            found.extend(values)
            for value in values:
                if value and isinstance(value, dict):
                    found.extend(value.values())
            waiting.extend(module._modules.values())
        return found

    def changed(self) -> bool:
        """Whether more than the values of tensors is another than when the model was copied."""
        now, before = self._made_of(), self.made_of
        same = len(now) == len(before) and all(map(operator.is_, now, before))
        return not same or next(self.model.parameters()).device != self.device

    def accept(self) -> None:
        """Count the model as it is now as unchanged."""
        self.made_of, self.device = self._made_of(), next(self.model.parameters()).device

    @property
    def hooked(self) -> bool:
        """Whether modules of the model have hooks, which copies would not call as it does."""
        modules = (m for part in _parts_of(self.model).values() for m in part.modules())
        return any(m._forward_hooks or m._forward_pre_hooks for m in modules)

    def check(self) -> None:
        """Raises:
        ValueError: A part was replaced, or ``top_k`` changed.
        """
        parts = _parts_of(self.model)
        same = parts.keys() == self.sources.keys() and all(
            part is self.sources[name] for name, part in parts.items()
        )
        if not same or self.model.router.top_k != self.modules["router"].top_k:
            raise ValueError(
                "parts of the model, or its top_k, were replaced since it was prepared; prepare it "
                "again"
            )

    def _expert(self, name: str) -> Expert:
        return cast(Expert, self.modules[f"experts.{name}"])

    def in_tf32(self, router: Callable[..., Any]) -> Callable[..., Any]:
        """``router``, whose products are taken in TF32 where these are copies in 16 bits."""
        if self.device.type != "cuda" or DTYPES[self.dtype] == torch.float32:
            return router

        def call(*args: Any) -> Any:
            # torch has one switch for all; what is captured keeps its kernels.
            matmul = torch.backends.cuda.matmul
            before, matmul.allow_tf32 = matmul.allow_tf32, True
            try:
                return router(*args)
            finally:
                matmul.allow_tf32 = before

        return call

    def _copy(self, name: str, part: nn.Module) -> nn.Module:
        exact = name in ("router", "combiner")
        form: dict[str, Any] = dict(device=self.device, memory_format=FORMATS[self.memory_format])
        copy = frozen_copy(part, dtype=torch.float32 if exact else DTYPES[self.dtype], **form)
        with torch.inference_mode(False), torch.no_grad():
            if DTYPES[self.dtype] != torch.float32:
                for router in list(copy.modules()):  # a grown one holds others
                    if isinstance(router, Router):
                        router.convolve_in(DTYPES[self.dtype])
            if self.fused:
                merge_heads(copy)
        return copy


def _parts_of(model: ModelLevelMoE) -> dict[str, nn.Module]:
    experts = {f"experts.{name}": expert for name, expert in model.experts.items()}
    return dict(backbone=model.backbone, router=model.router, combiner=model.combiner, **experts)


PLAIN_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNorm)
"""Batch norms that only normalise; timm's, for one, has an activation inside."""


def fold_batch_norm(module: nn.Module) -> int:
    """Multiply batch norms into the convolutions before them, in place.

    Where it is sure that one follows the other: in mmcv's ``ConvModule``, and side by side in
    ``nn.Sequential``. Others stay as they are.

    Args:
        module: In evaluation mode.

    Returns:
        How many were folded.
    """
    folded = 0
    for parent in list(module.modules()):
        if isinstance(parent, ConvModule) and parent.with_norm:
            pairs = [("conv", parent.norm_name)] if parent.order[:2] == ("conv", "norm") else []
        elif isinstance(parent, nn.Sequential):
            names = list(parent._modules)
            pairs = list(pairwise(names))
        else:
            continue
        for conv_name, norm_name in pairs:
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            if _foldable(conv, norm):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
                folded += 1
    return folded


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and type(norm) in PLAIN_NORMS
        and norm.running_mean is not None
        and not conv._forward_hooks
        and not norm._forward_hooks
    )


def frozen_copy(
    part: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> nn.Module:
    """A copy of a part that evaluates, without gradients, in ``dtype``, batch norm folded.

    Submodules with a method ``evaluation_form()`` are replaced by what it returns: a module that
    computes the same, faster. All that is done in float32, or float64 where the part has it, before
    rounding to ``dtype``.
    """
    with torch.inference_mode(False), torch.no_grad():
        copy = deepcopy(part).eval().requires_grad_(False)
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in copy.parameters()):
            copy.float()
        fold_batch_norm(copy)
        for parent in list(copy.modules()):
            for name, child in list(parent.named_children()):
                form = getattr(child, "evaluation_form", None)
                if form is not None:
                    setattr(parent, name, form())
        copy = copy.to(device=device, dtype=dtype)
        return copy.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch declares less


class PackedLinear(nn.Linear):
    """By oneDNN, in whose layout it also keeps its weights: float32 takes half the time that it
    takes through torch, which leaves it to MKL (two cores of an EPYC).
    """

    packed: Tensor
    packed_of: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """See :class:`nn.Linear`."""
        # Moving or replacing the weight starts no version of its own.
        weight = (self.weight.data_ptr(), self.weight._version)
        if self.packed_of != weight:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            self.packed_of = weight
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def pack_linear(module: nn.Module) -> None:
    """Make the linear layers of a copy on the CPU :class:`PackedLinear`, in place."""
    if not torch.backends.mkldnn.is_available():
        return
    dtypes = [torch.float32]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # by this processor
        dtypes.append(torch.bfloat16)
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.weight.dtype in dtypes:
            layer.__class__ = PackedLinear


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    """Parameters and buffers of modules, in order."""
    return [t for m in modules for t in (*m.parameters(), *m.buffers())]


def overwrite(copy: nn.Module, newer: nn.Module) -> None:
    """Give ``copy`` the values of another copy of the same part; its tensors stay where they are,
    so that what was captured with them reads the new values.
    """
    with torch.no_grad():
        for old, new in zip(tensors_of(copy), tensors_of(newer), strict=True):
            old.copy_(new)


class ChangeWatch:
    """Tells whether tensors of modules were written since it last looked.

    By torch's version counter, and by the address of each module's first tensor: moving a module
    moves them all. What is written through ``.data`` counts as nothing, there as in autograd.
    """

    def __init__(self, *modules: nn.Module):
        self.tensors = [t for t in tensors_of(*modules) if not t.is_inference()]
        self.firsts = [tensors[0] for m in modules if (tensors := tensors_of(m))]
        self.seen = self._now()

    def _now(self) -> tuple[list[int], list[int]]:
        return [t._version for t in self.tensors], [t.data_ptr() for t in self.firsts]

    def changed(self) -> bool:
        """Whether anything was written since the last call that said so."""
        now = self._now()
        if now == self.seen:
            return False
        self.seen = now
        return True

"""Measures the memory of a training step: on a GPU its peak, on the CPU what autograd keeps, or,
without computing, what its operations read and write."""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step_timing import measure
from codmoe.compiled.speed import PARTS, InTraining, compile_parts, compiled_parts, mapped
from codmoe.console import TextTable
from codmoe.engine.config import load_config, parse_options
from codmoe.models.build import skip_pretrained
from codmoe.models.dispatch import PyramidBank
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import MODELS

GIB = 2**30


class _Saved:
    """One tensor that autograd keeps."""

    def __init__(self, owner: SavedBytes, key: int, tensor: Tensor):
        self.owner, self.key, self.tensor = owner, key, tensor

    def __del__(self):
        self.owner.drop(self.key)


class SavedBytes:
    """Counts bytes of the tensors that autograd keeps for the backward pass, each storage once.

    Used as a context manager around forward and backward pass. Parameters and buffers do not count;
    nor does what activation checkpointing computes anew in the backward pass, which torch hides.

    Args:
        model: Whose parameters and buffers to leave out.

    Attributes:
        peak: The most bytes that were kept at once.
    """

    def __init__(self, model: nn.Module):
        state = [*model.parameters(), *model.buffers()]
        self.left_out = {tensor.untyped_storage()._cdata for tensor in state}
        self.kept: dict[int, tuple[int, int]] = {}
        self.peak = self.now = 0

    def __enter__(self) -> SavedBytes:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.take, self.give)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def take(self, tensor: Tensor) -> Tensor | _Saved:
        """Note a tensor that autograd wants to keep."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.left_out:
            return tensor
        size, count = self.kept.get(key, (storage.nbytes(), 0))
        self.now += size if count == 0 else 0
        self.kept[key] = (size, count + 1)
        self.peak = max(self.peak, self.now)
        return _Saved(self, key, tensor)

    def drop(self, key: int) -> None:
        """Autograd keeps one tensor of a storage no longer."""
        size, count = self.kept.pop(key)
        if count > 1:
            self.kept[key] = (size, count - 1)
        else:
            self.now -= size

    @staticmethod
    def give(saved: Tensor | _Saved) -> Tensor:
        """The tensor itself."""
        return saved.tensor if isinstance(saved, _Saved) else saved


def saved_bytes(model: nn.Module, images: Tensor, targets: Tensor) -> int:
    """The most bytes that autograd keeps at once in a training step of ``model``.

    Args:
        model: In training mode.
        images: Normalised images, (N, 3, H, W).
        targets: Ground truth in {0, 1}, (N, 1, H, W).
    """
    gc.collect()
    with SavedBytes(model) as saved:
        losses = model(images, targets=targets, mode="loss")
        model.parse_losses(losses)[0].backward()
    model.zero_grad()
    return saved.peak


def saved_by_part(model: ModelLevelMoE, images: Tensor, targets: Tensor) -> dict[str, int]:
    """Bytes that autograd keeps of each part alone: ``backbone@<scale>``, and every expert by name,
    with its own loss; arguments as of :func:`saved_bytes`.
    """
    kept: dict[str, int] = {}
    pyramids: dict[float, list[Tensor]] = {}
    bank = PyramidBank(images, model.passes())
    scales = {1.0, *(s for expert in model.experts.values() for s in expert.input_scales)}
    for scale in sorted(scales):
        with SavedBytes(model) as saved:
            pyramid = model.backbone(images) if scale == 1.0 else bank.get(scale, None)
        kept[f"backbone@{scale:g}"] = saved.peak
        pyramids[scale] = [level.detach().requires_grad_() for level in pyramid]
    for name, expert in model.experts.items():
        with SavedBytes(model) as saved:
            output = expert(images, [pyramids[scale] for scale in expert.input_scales])
            losses = expert.loss(output, targets, model.run_state.progress)
        kept[name] = saved.peak
        del output, losses
    return kept


class Traffic(TorchDispatchMode):
    """Counts operations that compute, and the bytes of what they read and write: what a GPU moves
    for code that is not compiled.
    """

    VIEWS = (
        *(
            "view",
            "_unsafe_view",
            "permute",
            "transpose",
            "t",
            "expand",
            "slice",
            "select",
            "split",
        ),
        *("split_with_sizes", "unbind", "detach", "alias", "as_strided", "unsqueeze", "squeeze"),
        *("unfold", "device", "empty", "empty_like", "empty_strided", "new_empty"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket.__name__ not in self.VIEWS:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
            self.operations += 1
        return result


def traffic(
    config: str, options: Mapping[str, Any] | None = None, *, batch: int = 16, size: int = 448
) -> dict[str, tuple[float, int]]:
    """What a training step in 16 bit reads and writes, forward and backward, without computing.

    Args:
        config: Config file or name of a stage whose experts are compared or mixed.
        options: Overrides of the config.
        batch: Images.
        size: Side of the images in pixels.

    Returns:
        GB and operations of each part that ``compile`` can name, every call of it together; of the
        step without these, ``"others"``; and of all, ``"whole"``.
    """
    kept = {"model.expert_execution": "together", "model.checkpoint_backbone": None}
    cfg = load_config(config, {**kept, **(options or {})})
    skip_pretrained(cfg.model)
    model = MODELS.build(cfg.model).train().to(memory_format=torch.channels_last)
    compile_parts(model, dict.fromkeys(PARTS, True))
    parts, moved = compiled_parts(model), {}
    for part in parts.values():
        part.watch = partial(_alone, moved)
    with FakeTensorMode(allow_non_fake_inputs=True), Traffic() as whole:
        images = torch.empty(batch, 3, size, size).to(memory_format=torch.channels_last)
        targets = torch.empty(batch, 1, size, size)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(images, targets=targets, mode="loss")
        model.parse_losses(losses)[0].backward()
    rest = Traffic()
    rest.bytes = whole.bytes - sum(counter.bytes for counter in moved.values())
    rest.operations = whole.operations - sum(counter.operations for counter in moved.values())
    counters = {**moved, "others": rest, "whole": whole}
    return {name: (round(c.bytes / 1e9, 1), c.operations) for name, c in counters.items()}


def _alone(moved: dict[str, Traffic], part: InTraining, args: tuple, kwargs: dict) -> Any:
    """Both passes of a part in turn; what follows it in the step is cut off."""
    with moved.setdefault(part.name, Traffic()):
        result = part.plain(*args, **kwargs)
        outputs: list[Tensor] = []
        mapped(result, lambda x: outputs.append(x) if x.requires_grad else None)
        inputs = list(part.module.parameters())
        mapped((args, kwargs), inputs.append)
        learning = [x for x in inputs if x.requires_grad]
        if outputs and learning:
            gradients = [torch.empty_like(x) for x in outputs]
            torch.autograd.grad(outputs, learning, gradients, allow_unused=True)
    return mapped(result, lambda x: x.detach().requires_grad_(x.requires_grad))


def peak_memory(
    config: str,
    options: Mapping[str, Any] | None = None,
    *,
    batch: int | None = None,
    size: int = 448,
    steps: int = 10,
    limit: float | None = None,
    parts: bool = False,
) -> dict[str, Any]:
    """Trains some steps of a config on random images.

    Args:
        config: Config file or name.
        options: Overrides of the config.
        batch: Images; the config's by default, one on the CPU.
        size: Side of the images in pixels.
        steps: Training steps on a GPU; the first ones choose convolution algorithms.
        limit: GiB that the process may take of the GPU, as if it had no more.
        parts: On the CPU, measure every part alone instead of a step.

    Returns:
        On a GPU ``allocated_gib`` and ``reserved_gib``, the peaks of torch's allocator, and
        ``precision``; on the CPU ``saved_gib`` in float32, and with ``parts`` the MiB of each part.
        Always ``batch`` and ``device``.

    Raises:
        ValueError, FileNotFoundError: The config is not right, or a limit was given without a GPU.
        torch.OutOfMemoryError: ``limit`` is not enough.
    """
    options = dict(options or {})
    if not torch.cuda.is_available():
        if limit is not None:
            raise ValueError(f"limit={limit}: there is no GPU to limit")
        batch = batch or 1
        cfg = load_config(config, options)
        skip_pretrained(cfg.model)
        torch.manual_seed(0)
        images = torch.randn(batch, 3, size, size)
        targets = (torch.rand(batch, 1, size, size) > 0.5).float()
        model = MODELS.build(cfg.model).train()
        if parts:
            kept = saved_by_part(model, images, targets)
            kept = {f"{part}_mib": round(size / 2**20) for part, size in kept.items()}
            return dict(device="CPU", batch=batch, **kept)
        saved = saved_bytes(model, images, targets)
        return dict(device="CPU", batch=batch, saved_gib=round(saved / GIB, 3))
    if parts:
        raise ValueError("parts are measured on the CPU: set CUDA_VISIBLE_DEVICES= to hide the GPU")
    if limit is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit * GIB / total, 1.0))
    if batch is not None:
        options["train_dataloader.batch_size"] = batch
    with tempfile.TemporaryDirectory() as folder:
        spec = dict(config=config, options=options, data="synthetic", size=size, work_dir=folder)
        figures = measure(dict(spec, steps=steps, warmup=2), "none")
    return dict(
        device=figures["device"],
        batch=figures["batch_per_process"],
        precision=figures["precision"],
        allocated_gib=round(figures["peak_allocated"][0] / GIB, 2),
        reserved_gib=round(figures["peak_reserved"][0] / GIB, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (experts/joint)")
    parser.add_argument("--batch", type=int, help="images; the config's, on the CPU one")
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=10, help="training steps on the GPU")
    parser.add_argument("--limit", type=float, metavar="GiB", help="of the GPU, no more than this")
    parser.add_argument("--parts", action="store_true", help="on the CPU, of every part alone")
    parser.add_argument("--traffic", action="store_true",
                        help="what operations read and write by part, of 16 images; nothing is "
                             "computed")  # fmt: skip
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args()
    settings = {key: getattr(args, key) for key in ("batch", "size", "steps", "limit", "parts")}
    try:
        if args.traffic:
            options = parse_options(args.cfg_options)
            moved = traffic(args.config, options, batch=args.batch or 16, size=args.size)
            heads = ["part", "GB", "operations"]
            TextTable(heads, [[n, f"{gb:.1f}", str(o)] for n, (gb, o) in moved.items()]).print()
            return
        figures = peak_memory(args.config, parse_options(args.cfg_options), **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(args.config + ": " + ", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()

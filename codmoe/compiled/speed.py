"""Settings for speed: memory format, norms in half precision, compiled parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from mmengine.logging import print_log
from timm.layers import fast_norm
from torch import Tensor, nn

from codmoe.compiled.graphs import keep_compiled
from codmoe.compiled.whole import GRAPHING_MODES, Whole, no_autocast_cache
from codmoe.messages import suggest
from codmoe.models.execution import block_switches
from codmoe.models.experts.ujsc import ConfidenceEstimator
from codmoe.models.losses.segmentation import WeightedBCEAndIoU
from codmoe.models.preprocessor import CODDataPreprocessor

FORMATS = dict(channels_last=torch.channels_last, contiguous=torch.contiguous_format)
PARTS = ("backbone", "experts", "router", "combiner", "losses")
COMPILE_KEYS = (*PARTS, "mode")
MODES = (*GRAPHING_MODES, "max-autotune-no-cudagraphs", "default", None)
SETTINGS: dict[str, Any] = dict(optimize_ddp=False, recompile_limit=64)
"""Dynamo's. All parts share one code object, ``Module._call_impl``, of which torch counts what it
compiles. DDP would have a part cut at the ends of its buckets: other code than in one process."""


def set_memory_format(model: nn.Module, name: str | None) -> None:
    """Lay out the weights of a model, and the images that its preprocessor gives it.

    Config: top-level ``memory_format``, ``"channels_last"`` (what tensor cores read without a copy)
    or ``"contiguous"``. Values do not change; sums are rounded in another order.

    Raises:
        ValueError: The name is unknown.
    """
    if name is None:
        return
    if name not in FORMATS:
        raise ValueError(f"memory_format={name!r} is unknown; {suggest(str(name), FORMATS)}")
    model.to(memory_format=FORMATS[name])  # type: ignore[call-overload]  # torch declares less
    preprocessor = getattr(model, "data_preprocessor", None)
    if isinstance(preprocessor, CODDataPreprocessor):
        preprocessor.memory_format = FORMATS[name]


def set_fast_norm(on: bool) -> None:
    """Whether timm's layer norms stay in half precision under autocast.

    Config: top-level ``fast_norm``. Autocast makes layer norms of float32 tensors, twice the bytes,
    and casts their results back; their sums are taken in float32 either way. timm keeps one switch
    for all norms that are made from then on.
    """
    fast_norm.set_fast_norm(bool(on))


def speed_faults(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``memory_format``, ``fast_norm`` and ``compile``, one sentence each."""
    faults, name = [], cfg.get("memory_format")
    if name is not None and name not in FORMATS:
        faults.append(f"memory_format={name!r} is unknown; {suggest(str(name), FORMATS)}")
    if not isinstance(cfg.get("fast_norm", False), bool):
        faults.append(f"fast_norm={cfg['fast_norm']!r}: give True or False")
    graphs = cfg.get("train_graphs")
    if any(graphs.values()) if isinstance(graphs, Mapping) else graphs:
        faults.append("train_graphs is gone, leave it out: compile=True captures what it compiles")
    options = cfg.get("compile")
    if not isinstance(options, (Mapping, bool, type(None))):
        return [*faults, f"compile={options!r}: give True, or a dict, e.g. dict(backbone=True)"]
    given = options if isinstance(options, Mapping) else {}
    for key, value in given.items():
        if key not in COMPILE_KEYS:
            faults.append(f"compile: no key {key!r}; {suggest(key, COMPILE_KEYS)}")
        elif key != "mode" and not isinstance(value, (bool, type(None))):
            faults.append(f"compile.{key}={value!r}: give True or False")
    if (mode := given.get("mode")) not in MODES:
        faults.append(f"compile.mode={mode!r} is unknown; {suggest(str(mode), map(str, MODES))}")
    # The default stands in each config, beside parts that are all False.
    default = mode == GRAPHING_MODES[0] and set(given) & set(PARTS)
    if "mode" in given and not default and not any(given.get(part) for part in PARTS):
        faults.append(
            f"compile: {mode=!r} of no part; give True for some, e.g. backbone=True, or for all: "
            "compile=True; False compiles none"
        )
    wrapper = cfg.get("optim_wrapper") or {}
    captured = compile_options(options).get("mode") in GRAPHING_MODES
    if captured and (wrapper.get("accumulative_counts") or 1) > 1:
        faults.append(
            "compile with optim_wrapper.accumulative_counts > 1: gradients lie where the next step "
            "writes its own; take a larger batch, or compile.mode=None"
        )
    return faults


def compile_options(options: Mapping[str, Any] | bool | None) -> dict[str, Any]:
    """The parts that a config's ``compile`` names, each with True, and ``mode``; empty if none."""
    if not isinstance(options, Mapping):
        options = dict.fromkeys(PARTS, True) if options else {}
    chosen: dict[str, Any] = {part: True for part in PARTS if options.get(part)}
    return dict(chosen, mode=options.get("mode", GRAPHING_MODES[0])) if chosen else {}


def compile_parts(model: nn.Module, options: Mapping[str, Any] | bool | None) -> list[str]:
    """Have parts of a model compiled when training first calls them, each on its own.

    Config: top-level ``compile``: True, or a dict with True for some of ``backbone``, ``experts``,
    ``router`` (its score: the choice has a number that changes in each step), ``combiner`` and
    ``losses`` (where maps are held against the ground truth at full size, and UJSC's
    discriminator), and ``mode``, ``torch.compile``'s. By default it is "reduce-overhead", which
    captures compiled code in CUDA graphs; experts that are computed again in the backward pass, or
    one after another, are not.
    Gradients have to be None before each backward pass, as ``zero_grad()`` leaves them. Names in
    the state dict do not change. Evaluation runs uncompiled: its last batch is smaller, and every
    size would be compiled anew.

    Returns:
        Names of the parts, e.g. ``"experts.sinet"``.
    """
    options, names, uncaptured = compile_options(options), [], set()
    if options:
        keep_compiled()
    for part in (part for part in PARTS if part in options):
        for name, region in regions(model, part):
            names.append(name)
            mode = options["mode"]
            if mode in GRAPHING_MODES and (setting := _uncaptured_by(model, name, region)):
                mode = None
                uncaptured.add((name.partition(".")[0], setting))
            scored = part == "router"
            compiled = InTraining(region, name, mode, "score" if scored else "_call_impl")
            region._compiled_call_impl = _Scored(region, compiled) if scored else compiled
    for part, setting in sorted(uncaptured):
        print_log(f"{part}: compiled, without CUDA graphs because of {setting}", logger="current")
    return names


def _uncaptured_by(model: nn.Module, name: str, region: nn.Module) -> str | None:
    """The setting by which a part, or a loss, is not captured, and the one to take for it.

    Of experts that are computed again, or have a backward pass each, torch 2.11 was seen to take
    seconds for each step, as if it captured it anew, and to stop by an error of its graphs. Their
    losses are computed within the same calls.
    """
    training = getattr(model, "expert_training", None)
    # Without losses of their own experts run once, and together.
    execution = training.execution if training is not None and training.weight > 0 else "together"
    if name.startswith("experts.") and execution != "together":
        return f"expert_execution={execution!r}; 'together' has them, and needs more memory"
    again = getattr(model, "checkpoint_backbone", None)
    if again == "extra" and not _reads_further_scales(model):
        again = None  # there are no such passes
    # Blocks that are computed again are so within compiled code, which captures as any other does.
    if name == "backbone" and again is not None and not block_switches(region):
        return (
            f"checkpoint_backbone={again!r} of a backbone without checkpoints of its own; "
            "None has them, and needs more memory"
        )
    return None


def _reads_further_scales(model: nn.Module) -> bool:
    experts: Mapping[str, Any] = getattr(model, "expert_parts", {})
    return any(scale != 1.0 for expert in experts.values() for scale in expert.input_scales)


def regions(model: nn.Module, part: str) -> list[tuple[str, nn.Module]]:
    """What is compiled for one of ``PARTS``, each by its name, e.g. ``"experts.sinet"``."""
    if part == "losses":
        judges = (WeightedBCEAndIoU, ConfidenceEstimator)
        return [(name, m) for name, m in model.named_modules() if isinstance(m, judges)]
    module = model.get_submodule(part)
    if part == "experts":
        return [(f"{part}.{name}", region) for name, region in module.named_children()]
    computes = part != "router" or any(True for _ in module.parameters())
    return [(part, module)] if computes else []


def compiled_parts(model: nn.Module) -> dict[str, InTraining]:
    """What :func:`compile_parts` gave a model, by the names of the parts."""
    found = {}
    for module in model.modules():
        call = getattr(module, "_compiled_call_impl", None)
        call = call if isinstance(call, InTraining) else getattr(call, "compiled", None)
        if isinstance(call, InTraining):
            found[call.name] = call
    return found


class InTraining:
    """Calls a module compiled while it trains; uncompiled otherwise, and for good after a failure.

    It stands where ``nn.Module.compile`` puts its function, which neither copies nor state dicts
    take along.

    Args:
        module: The module.
        name: Of the part.
        mode: ``torch.compile``'s.
        method: What of the module is compiled.
    """

    known: set[tuple] | None = None
    """How inputs look that it is compiled for; others run uncompiled. None: whatever comes."""
    watch: Callable[[InTraining, tuple, dict[str, Any]], Any] | None = None
    """Answers each call while a step is looked at."""
    unknown = 0
    """Calls in training that ran uncompiled, as nothing was compiled for such inputs."""

    def __init__(self, module: nn.Module, name: str, mode: str | None, method: str = "_call_impl"):
        self.module, self.name, self.mode, self.method = module, name, mode, method
        self.plain = getattr(module, method)
        self.compiled = torch.compile(self.plain, dynamic=False, mode=mode)
        self.failed = False
        self.whole: dict[tuple, Whole] = {}
        """What needs no tracing, by the looks of its inputs."""

    def __call__(self, *args, **kwargs):
        if not self.module.training or self.failed:
            return self.plain(*args, **kwargs)
        args, kwargs = mapped((args, kwargs), _settled)
        if self.watch is not None:
            return self.watch(self, args, kwargs)
        if self.known is not None:
            look = look_of(args, kwargs)
            if look not in self.known:
                self.unknown += 1
                return self.plain(*args, **kwargs)
            whole = self.whole.get(look)
            if whole is not None:
                with no_autocast_cache():
                    if not (reason := whole.misfit(args, kwargs)):
                        return whole(*args, **kwargs)
                del self.whole[look]
                print_log(f"{self.name} is traced again: {reason}", logger="current")
        try:
            with torch._dynamo.config.patch(SETTINGS), no_autocast_cache():
                return self.compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.give_up(error)
            return self.plain(*args, **kwargs)

    def give_up(self, error: Exception) -> None:
        """Run uncompiled from now on, and say why."""
        self.failed = True
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        print_log(
            f"{self.name} cannot be compiled and runs uncompiled: {type(error).__name__}: "
            f"{reason[:200]}",
            logger="current",
            level=logging.WARNING,
        )


class _Scored:
    """Calls a router with its score compiled.

    Args:
        router: The router.
        compiled: Of its ``score``.
    """

    def __init__(self, router: nn.Module, compiled: InTraining):
        self.router, self.compiled = router, compiled

    def __call__(self, *args, **kwargs):
        vars(self.router)["score"] = self.compiled
        try:
            return self.router._call_impl(*args, **kwargs)
        finally:
            del vars(self.router)["score"]


def _settled(tensor: Tensor) -> Tensor:
    """The tensor as it looks behind eager experts and behind compiled ones, for which code is the
    same: with the stride of a side of one pixel or channel as in contiguous ones, as a map has
    another there in either memory format, by chance; and maps of one channel in float32, as eager
    code resizes them under autocast, and compiled code does not.
    """
    plain = tensor.view(tensor.shape) if 1 in tensor.shape else tensor
    tensor = tensor if plain.stride() == tensor.stride() else plain
    a_map = tensor.dim() == 4 and tensor.shape[1] == 1 and tensor.is_floating_point()
    return tensor.float() if a_map else tensor


def look_of(*values: Any) -> tuple:
    """How the inputs of a call look: what compiled code is made for, and a captured graph."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (torch.is_grad_enabled(), autocast, *map(_look, values))


def _look(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
    if isinstance(value, Mapping):
        return tuple((key, _look(one)) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_look, value))
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(_look(getattr(value, field.name)) for field in fields(value))
    return value


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Lists, tuples, dicts and dataclasses with ``function`` of each tensor in its place."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(one, function) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(one, function) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: mapped(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **inner)
    return value

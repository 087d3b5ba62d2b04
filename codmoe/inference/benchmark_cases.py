"""What the benchmark runs: models of a config, routes through them, their parts, training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from codmoe.engine import message_hub
from codmoe.engine.checkpoints import load_parts
from codmoe.engine.launch import skip_pretrained
from codmoe.engine.precision import settle_fused
from codmoe.engine.speed import compile_parts, set_memory_format
from codmoe.inference.engine import CompiledMoE
from codmoe.inference.timing import Call
from codmoe.models.build import DEFAULT_EXPERTS
from codmoe.models.dispatch import PyramidBank, run_experts
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers import FixedRouter
from codmoe.registry import MODELS, suggest

PRECISIONS = dict(fp32=None, fp16=torch.float16, bf16=torch.bfloat16)


def expert_names(cfg: Mapping[str, Any], count: int | None = None) -> dict[str, dict]:
    """Configs of ``count`` experts by name: the config's own in alphabetical order, then copies of
    them, ``sinet_2`` and so on. None takes the config's own.
    """
    section = cfg["model"]
    own = section.get("experts") or dict(
        list(DEFAULT_EXPERTS.items())[: section.get("num_experts") or 4]
    )
    own = {name: own[name] for name in sorted(own) if own[name] is not None}
    names = list(own)
    count = len(own) if count is None else count
    chosen = {}
    for i in range(count):
        name, copies = names[i % len(names)], i // len(names)
        chosen[f"{name}_{copies + 1}" if copies else name] = own[name]
    return chosen


def build(
    cfg: Config,
    *,
    experts: int | None = None,
    top_k: int | None = None,
    checkpoint: str | None = None,
    device: torch.device,
) -> ModelLevelMoE:
    """A model of a config, with another number of experts or choices, in evaluation mode."""
    cfg = deepcopy(cfg)
    skip_pretrained(cfg)
    if experts is not None:
        cfg.model.pop("num_experts", None)
        chosen = expert_names(cfg, experts)
        cfg.model.experts = {**dict.fromkeys(cfg.model.get("experts") or {}), **chosen}
    if top_k is not None:
        cfg.model.top_k = top_k
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_parts(model, checkpoint)
    return model.to(device).eval()


def check_routes(routes: Sequence[str], names: Sequence[str]) -> None:
    """Raises:
    ValueError: A route names an expert that is not there.
    """
    for route in routes:
        for name in () if route in ("auto", "all") else route.split(","):
            if name not in names:
                raise ValueError(
                    f"route {route!r}: no expert {name!r}; {suggest(name, names)} "
                    f"(experts: {', '.join(names)}; or 'auto', 'all')"
                )


def on_route(model: ModelLevelMoE, route: str) -> Callable[[Tensor], Tensor]:
    """Images → logits by the model's own router (``"auto"``), or by the experts that a route names.

    A named route runs no router but :class:`FixedRouter` and never asks the host whom to run, so it
    can be captured whole.
    """
    if route == "auto":
        return model
    names = model.expert_names if route == "all" else tuple(route.split(","))
    channels, device = model.router.in_channels, next(model.parameters()).device
    router = FixedRouter(
        in_channels=channels, expert_names=model.expert_names, weights=dict.fromkeys(names, 1.0)
    ).to(device)

    def run(images: Tensor) -> Tensor:
        pyramid = model.backbone(images)
        decision = router(images, pyramid)
        bank = PyramidBank(images, pyramid, model.backbone, model.backbone.size_divisor)
        outputs = run_experts(model.experts, bank, dict.fromkeys(names))
        return model.combiner(outputs, decision, tuple(images.shape[-2:]))

    return run


def images_of(batch: int, size: int, device: torch.device, layout: str) -> Tensor:
    """Random normalised images, (batch, 3, size, size), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    last = layout == "channels_last"
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@contextmanager
def _precision(device: torch.device, precision: str, cache: bool = True) -> Iterator[None]:
    dtype = PRECISIONS[precision]
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=cache),
    ):
        yield


def in_precision(
    run: Callable[[Tensor], Any], images: Tensor, precision: str, *, cache: bool = True
) -> Call:
    """A call of ``run`` on ``images`` without gradients, under autocast for fp16 and bf16."""

    def call():
        with _precision(images.device, precision, cache):
            return run(images)

    return call


def through_engine(model: ModelLevelMoE, images: Tensor, route: str, precision: str) -> Call:
    """A call of a :class:`CompiledMoE`. On a named route its router runs and is waited for all the
    same; its choice is replaced.
    """
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = "channels_last" if last else "contiguous"
    engine = CompiledMoE(model, dtype=precision, memory_format=layout, batches=(len(images),))
    names = dict(auto=None, all=model.expert_names).get(route, route.split(","))
    return lambda: engine(images, names=names)


def parts_of(model: ModelLevelMoE, images: Tensor, precision: str) -> dict[str, Call]:
    """A call of each part on the whole batch: backbone, further scales, router, experts, combiner.

    What a part reads is computed before.
    """
    backbone, size = model.backbone, tuple(images.shape[-2:])

    def fresh() -> PyramidBank:
        return PyramidBank(images, pyramid, backbone, backbone.size_divisor)

    with _precision(images.device, precision):
        pyramid = backbone(images)
        decision = model.router(images, pyramid)
        bank = fresh()
        levels = {n: [bank.get(s, None) for s in e.input_scales] for n, e in model.experts.items()}
        outputs = run_experts(model.experts, bank, dict.fromkeys(model.experts))
    scales = sorted({s for e in model.experts.values() for s in e.input_scales} - {1.0})
    runs: dict[str, Callable[[Tensor], Any]] = dict(backbone=backbone)
    runs |= {f"backbone at {s:g}×": lambda x, s=s: fresh().get(s, None) for s in scales}
    runs["router"] = lambda x: model.router(x, pyramid)
    for name, expert in model.experts.items():
        runs[name] = lambda x, e=expert, n=name: e(x, levels[n])
    runs["combiner"] = lambda x: model.combiner(outputs, decision, size)
    return {name: in_precision(run, images, precision) for name, run in runs.items()}


def training_step(
    cfg: Config,
    model: ModelLevelMoE,
    *,
    batch: int,
    size: int,
    precision: str,
    layout: str,
    compiled: bool = False,
) -> Call:
    """A call that is one training step of the config: its losses, backward pass, clipping, update.

    Raises:
        ValueError: fp16 or bf16 without a GPU.
    """
    device, cfg = next(model.parameters()).device, deepcopy(cfg)
    if precision != "fp32" and device.type != "cuda":
        raise ValueError(f"training in {precision} needs a GPU")
    message_hub.install("benchmark")  # the norm of the gradient is told to the latest hub
    set_memory_format(model, layout)
    if compiled:
        compile_parts(model, dict(backbone=True, experts=True))
    wrapper = cfg.optim_wrapper
    amp = dict(fp16=("float16", "dynamic"), bf16=("bfloat16", 1.0)).get(precision)
    wrapper.type = "CODAmpOptimWrapper" if amp else "CODOptimWrapper"
    if amp:
        wrapper.update(dtype=amp[0], loss_scale=amp[1])
    if device.type == "cuda":
        settle_fused(cfg)
    optimiser = build_optim_wrapper(model.train(), wrapper)
    if amp:  # as TrainingProgressHook does
        model.expert_training.scale_loss = optimiser.loss_scaler.scale
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    coarse = torch.randn(batch, 1, 8, 8, generator=generator)
    masks = (F.interpolate(coarse, (size, size), mode="bilinear") > 0.3).to(torch.uint8)
    data = dict(inputs=images.to(device), targets=masks.to(device))
    return lambda: model.train_step(data, optimiser)

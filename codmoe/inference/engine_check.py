"""Engine against eager on one machine: the same results on every route, and how long they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from codmoe.engine.host_waits import noting_waits
from codmoe.inference.engine import CompiledMoE
from codmoe.inference.frozen_model import DTYPES
from codmoe.inference.timing import side_by_side, synchronise, warmed
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers.base import Router


class ForcedRouter(nn.Module):
    """Runs a router and then chooses ``names`` with equal weights whatever it says: what a route
    costs, the router included.
    """

    def __init__(self, router: Router, names: Sequence[str]):
        super().__init__()
        self.router, self.names, self.top_k = router, tuple(names), len(names)
        wanted = torch.tensor([router.expert_names.index(name) for name in names])
        self.register_buffer("wanted", wanted, persistent=False)

    def forward(self, images: Tensor, pyramid: Sequence[Tensor], progress: float = 1.0):
        """See :class:`Router`."""
        decision = self.router(images, pyramid, progress)
        shape = (len(images), self.top_k)
        decision.indices = self.wanted.expand(shape)
        decision.weights = decision.logits.new_full(shape, 1 / self.top_k)
        return decision


@contextmanager
def on_route(model: ModelLevelMoE, names: Sequence[str] | None) -> Iterator[None]:
    """The model with its router's choice replaced by ``names``; None leaves it."""
    router = model.router
    if names is not None:
        model.router = ForcedRouter(router, names).to(next(model.parameters()).device)
    try:
        yield
    finally:
        model.router = router


def eager_call(
    model: ModelLevelMoE, images: Tensor, dtype: str, names: Sequence[str] | None
) -> Callable[[], Tensor]:
    """A call of the model itself on a route, under autocast for 16 bit."""

    def call() -> Tensor:
        kind = DTYPES[dtype]
        with (
            on_route(model, names),
            torch.inference_mode(),
            torch.autocast(images.device.type, kind, enabled=kind != torch.float32),
        ):
            return model.mixture(images)[0]

    return call


def as_if_trained(model: ModelLevelMoE, size: int, *, rounds: int = 4) -> ModelLevelMoE:
    """Gives a model with random weights the batch statistics and the varied routes of a trained
    one; without them activations grow to thousands, and no comparison means anything.
    """
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if hasattr(model.router, "fuse"):
        nn.init.normal_(model.router.fuse[-1].weight, std=0.3)
    with torch.no_grad():
        for seed in range(rounds):
            for norm in norms:
                norm.momentum = 1 / (1 + seed)  # the mean over all rounds
            model.train().mixture(pictures(4, size, device, seed=100 + seed), dense=True)
    return model.eval()


def pictures(batch: int, size: int, device: torch.device, *, seed: int = 0) -> Tensor:
    """Random smooth images with noise of varied strength on them, (batch, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 8, 8, generator=generator)
    noise = torch.randn(batch, 3, size, size, generator=generator)
    strength = torch.rand(batch, 1, 1, 1, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic")
    return (smooth + strength * noise).to(device)


def routes_of(model: ModelLevelMoE) -> list[tuple[str, ...]]:
    """Every single expert, and every choice of ``top_k``."""
    names = model.expert_names
    return [r for k in sorted({1, model.router.top_k}) for r in combinations(names, k)]


def parity(
    model: ModelLevelMoE,
    engine: CompiledMoE,
    images: Tensor,
    routes: Sequence[tuple[str, ...]] | None = None,
) -> dict[tuple[str, ...], dict[str, float]]:
    """Differences of probabilities between an engine and the float32 model, route by route.

    Args:
        model: The model.
        engine: Made of it.
        images: Normalised images.
        routes: Names of the experts of each; all, and the router's own, by default.

    Returns:
        ``{route: {max, mean, mask, eager_max, eager_mean}}``: largest and mean difference, share of
        pixels on the other side of 0.5, and the differences of the model under autocast to the
        engine's precision from itself in float32. The route ``()`` is the router's own choice.
    """
    rows = {}
    for route in routes if routes is not None else [*routes_of(model), ()]:
        names = route or None
        with exact_products():
            expected = eager_call(model, images, "fp32", names)().sigmoid()
        usual = eager_call(model, images, engine.frozen.dtype, names)().sigmoid()
        for _ in range(2):  # the second is a replay
            got = engine(images, names=names).sigmoid()
        apart, usual = (got - expected).abs(), (usual - expected).abs()
        rows[route] = dict(
            max=apart.max().item(),
            mean=apart.mean().item(),
            mask=((got > 0.5) != (expected > 0.5)).float().mean().item(),
            eager_max=usual.max().item(),
            eager_mean=usual.mean().item(),
        )
    return rows


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def host_waits(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Lines at which the host waits for the device in one call; nothing on the CPU."""
    if device.type != "cuda":
        return {}
    counts: Counter[str] = Counter()
    synchronise(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with noting_waits(counts):
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(counts)


def piece_times(engine: CompiledMoE, batch: int, size: int, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of each prepared piece of one lane by itself, replayed one after the other."""
    lane, times = engine.lanes[batch, size, size], {}
    for key, run in lane._ready.items():
        call = warmed(_quiet(run), engine.device, 2)
        sample = side_by_side({"x": call}, engine.device, repeats=repeats)["x"]
        times[" ".join(map(str, key))] = 1e3 * sample.burst
    return times


def _quiet(run: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode(), torch.autocast("cuda", enabled=False):
            run()

    return call

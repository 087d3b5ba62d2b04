"""Compares the prepared model with the model, results and time, printed as it goes."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.step_timing import noting_waits
from codmoe.compiled.prepared import CompiledMoE
from codmoe.compiled.speed import set_memory_format
from codmoe.engine.checkpoints import load_parts
from codmoe.engine.config import parse_options
from codmoe.evaluation.timing import reserved, side_by_side, synchronise, warmed, working_memory
from codmoe.files import save_json
from codmoe.inference.benchmark import in_precision
from codmoe.inference.zoo import create_model
from codmoe.models.moe import ModelLevelMoE

Results = dict[str, Any]


def run(
    config: str,
    *,
    checkpoint: str | None = None,
    size: int = 448,
    large: int = 16,
    dtype: str = "auto",
    inductor: bool | str = False,
    repeats: int = 20,
    budget: float = 190.0,
    device: str | None = None,
    json_file: str | Path | None = None,
    options: dict[str, Any] | None = None,
) -> Results:
    """Latency, throughput, parity on every route, host waits, memory and the time of each piece, of
    the prepared model and of the model itself in one process.

    Args:
        config: Config of the model.
        checkpoint: Weights; without, random ones with the batch statistics of trained ones.
        size: Side of the images in pixels.
        large: Batch of the throughput.
        dtype: Precision; see :class:`CompiledMoE`.
        inductor: Also the ``"inductor"`` backend, last: compiling takes minutes. ``"only"`` leaves
            all else out but the speed of the usual backend beside it.
        repeats: Calls that count.
        budget: Seconds; what has not begun by then is left out.
        device: The first GPU if there is one.
        json_file: Where the figures go.
        options: Overrides of the config's ``model``.

    Raises:
        FileNotFoundError, ValueError: Config or checkpoint are missing or do not fit.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    model = create_model(config, **(options or {})).to(where)
    if checkpoint is None:
        as_if_trained(model, size)
    else:
        load_parts(model, checkpoint)
    model.eval().requires_grad_(False)
    card = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    print(f"{config} on {card}, torch {torch.__version__}, {size} × {size}", flush=True)
    results: Results = dict(config=config, card=card, torch=torch.__version__, size=size)
    run_ = _Run(model, where, size, repeats, results)
    limits = Limits(budget)
    prepared = CompiledMoE(model, dtype=dtype)
    if inductor != "only":
        _everything(run_, limits, prepared, large, dtype)
    if inductor:
        with limits.part("variant inductor", 900):
            run_.compiled(prepared, large, dtype=dtype, backend="inductor")
    limits.end()
    print("\n" + prepared.report, flush=True)
    if json_file is not None:
        print(f"wrote {save_json(json_file, results)}")
    return results


def _everything(run_: _Run, limits: Limits, prepared: CompiledMoE, large: int, dtype: str) -> None:
    kind, size, results = prepared.copies.dtype, run_.size, run_.results
    with limits.part("one image", 90):
        run_.speed(1, {"": prepared}, eager=True)
    with limits.part(f"parity in {kind}, {len(routes_of(run_.model))} routes", 60):
        run_.parity(prepared)
    with limits.part(f"{large} images", 100):
        run_.speed(large, {"": prepared}, eager=True)
    with limits.part("host waits and memory", 30):
        run_.waits_and_memory(prepared, large)
    with limits.part("pieces by themselves", 30):
        for batch in (1, large):
            times = piece_times(prepared, batch, size)
            results[f"pieces_{batch}"] = times
            print(f"batch {batch}: " + ", ".join(f"{k} {v:.2f} ms" for k, v in times.items()))
    if kind != "fp32":
        with limits.part("parity in fp32, without TF32", 60), exact_products():
            run_.parity(CompiledMoE(run_.model, dtype="fp32"))
    others = dict(contiguous=dict(memory_format="contiguous"), apart=dict(overlap=False))
    others |= dict(fp16=dict(dtype="fp16")) if kind == "bf16" else {}
    for name, changes in others.items():
        with limits.part(f"variant {name}: {changes}", 60):
            other = CompiledMoE(run_.model, **{"dtype": dtype, **changes})
            run_.speed(1, {name: other}, eager=False)
            run_.speed(large, {name: other}, eager=False)
            if name == "fp16":
                run_.parity(other)


class _Run:
    def __init__(self, model, device: torch.device, size: int, repeats: int, results: Results):
        self.model, self.device, self.size, self.repeats = model, device, size, repeats
        self.results = results
        self.reserved = reserved(device)
        names = model.expert_names
        further = [n for n in names if set(model.experts[n].input_scales) - {1.0}]
        plain = [n for n in names if n not in further]
        k = model.router.top_k
        self.routes: dict[str, tuple[str, ...] | None] = {"router's choice": None}
        chosen = [tuple(plain[:k]), tuple(plain[-k:])] if len(plain) >= k else []
        chosen += [(*plain[: k - 1], *further[:1])] if further else []
        self.routes |= {" + ".join(route): route for route in chosen}

    def images(self, batch: int) -> torch.Tensor:
        return pictures(batch, self.size, self.device)

    def speed(self, batch: int, variants: dict[str, CompiledMoE], *, eager: bool) -> None:
        """Prints median, 90th percentile and images/s of every route."""
        images, calls = self.images(batch), {}
        kind = next(iter(variants.values())).copies.dtype
        model, x = self.model, images
        if eager:
            model = deepcopy(self.model)
            set_memory_format(model, "channels_last")
            x = images.contiguous(memory_format=torch.channels_last)
        for route, names in self.routes.items():
            if eager:
                calls[route, "eager"] = eager_call(model, x, kind, names)
            for label, variant in variants.items():
                calls[route, f"prepared {label}".strip()] = partial(variant, images, names=names)
        for call in calls.values():
            warmed(call, self.device, 4)
        for (route, what), sample in side_by_side(calls, self.device, repeats=self.repeats).items():
            row = sample.figures(batch)
            self.results.setdefault("speed", []).append(
                dict(batch=batch, route=route, names=self.routes[route], what=what, **row)
            )
            print(
                f"batch {batch:2d}  {route:20s} {what:18s} median {row['median_ms']:8.2f} ms  "
                f"p90 {row['p90_ms']:8.2f} ms  {row['images_per_second']:8.1f} images/s",
                flush=True,
            )
        for label, variant in variants.items():
            seconds = sum(piece.seconds for piece in variant.pieces)
            count = len(variant.pieces)
            print(f"prepared {label}: {count} pieces, {seconds:.1f} s to prepare so far")

    def compiled(self, prepared: CompiledMoE, large: int, **options: Any) -> None:
        """A further backend beside the usual one, with the time of its pieces."""
        other = CompiledMoE(self.model, **options)
        # The router's choice makes groups of many sizes, each of which takes a minute to compile.
        self.routes = {label: names for label, names in self.routes.items() if names}
        for batch in (large, 1):
            self.speed(batch, {"": prepared, options["backend"]: other}, eager=False)
        self.parity(other, batch=large, routes=list(self.routes.values()))
        times = piece_times(other, large, self.size)
        self.results[f"pieces_{large}_{options['backend']}"] = times
        print(f"batch {large}: " + ", ".join(f"{k} {v:.2f} ms" for k, v in times.items()))

    def parity(self, prepared: CompiledMoE, batch: int = 2, routes: list | None = None) -> None:
        kind = prepared.copies.dtype
        rows = parity(self.model, prepared, self.images(batch), routes)
        key = f"parity_{kind}" + ("" if routes is None else f"_{batch}")
        self.results[key] = {" + ".join(k) or "router": v for k, v in rows.items()}
        for route, row in rows.items():
            print(
                f"{' + '.join(route) or 'router':20s} prepared: max {row['max']:.1e} mean "
                f"{row['mean']:.1e} mask {row['mask']:.1e}   autocast: max {row['eager_max']:.1e} "
                f"mean {row['eager_mean']:.1e}",
                flush=True,
            )
        worst = max(row["max"] for row in rows.values())
        mean = statistics.fmean(row["mean"] for row in rows.values())
        print(f"worst of a probability in {kind}: {worst:.2e}; mean {mean:.2e}")

    def waits_and_memory(self, prepared: CompiledMoE, batch: int) -> None:
        images = self.images(batch)
        calls = dict(eager=eager_call(self.model, images, prepared.copies.dtype, None))
        calls["prepared"] = lambda: prepared(images)
        for name, call in calls.items():
            warmed(call, self.device, 1)
            waits, memory = host_waits(call, self.device), working_memory(call, self.device)
            self.results[f"waits_{name}"], self.results[f"memory_{name}"] = waits, memory
            print(
                f"{name}: host waits in a batch {dict(waits)}, {memory:.0f} MiB beyond what lies "
                "there"
            )
        if self.device.type == "cuda":
            held = reserved(self.device) - self.reserved
            print(f"prepared: {held:.0f} MiB for weights, buffers and what graphs compute with")
            self.results["prepared_mb"] = held


def eager_call(
    model: ModelLevelMoE, images: Tensor, dtype: str, names: Sequence[str] | None
) -> Callable[[], Tensor]:
    """A call of the model itself on a route, under autocast for 16 bit; its router runs."""
    routed = model if names is None else model.on_route(names, run_router=True)
    return in_precision(lambda x: routed.mixture(x)[0], images, dtype)


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
    prepared: CompiledMoE,
    images: Tensor,
    routes: Sequence[tuple[str, ...]] | None = None,
) -> dict[tuple[str, ...], dict[str, float]]:
    """Differences of probabilities between a prepared model and the float32 model, route by route.

    Args:
        model: The model.
        prepared: Made of it.
        images: Normalised images.
        routes: Names of the experts of each; all, and the router's own, by default.

    Returns:
        ``{route: {max, mean, mask, eager_max, eager_mean}}``: largest and mean difference, share of
        pixels on the other side of 0.5, and the differences of the model under autocast to the
        precision of the prepared one from itself in float32. The route ``()`` is the router's
        own choice.
    """
    rows = {}
    for route in routes if routes is not None else [*routes_of(model), ()]:
        names = route or None
        with exact_products():
            expected = eager_call(model, images, "fp32", names)().sigmoid()
        usual = eager_call(model, images, prepared.copies.dtype, names)().sigmoid()
        for _ in range(2):  # the second is a replay
            got = prepared(images, names=names).sigmoid()
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


def piece_times(
    prepared: CompiledMoE, batch: int, size: int, repeats: int = 20
) -> dict[str, float]:
    """Milliseconds of each piece for one batch size, each replayed by itself."""
    times = {}
    prepared.warm_up([batch], size)  # whose pieces need not be kept
    for key, run in prepared.buffers[batch, size, size].pieces.items():
        call = warmed(_quiet(run), prepared.device, 2)
        sample = side_by_side({"x": call}, prepared.device, repeats=repeats)["x"]
        times[" ".join(map(str, key))] = 1e3 * sample.burst
    return times


def _quiet(run: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode(), torch.autocast("cuda", enabled=False):
            run()

    return call


class OutOfTime(BaseException):
    """A part took too long. No error that somebody on the way would answer."""


class Limits:
    """Runs parts of a check one after the other; one that fails or takes too long is reported, and
    the next begins.

    Args:
        budget: Seconds for all of them. What has not begun by then is left out; where the process
            hangs in foreign code it is ended 20 s later.
    """

    def __init__(self, budget: float):
        self.started, self.budget = time.monotonic(), budget
        faulthandler.dump_traceback_later(budget + 20, exit=True, file=sys.__stderr__)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.budget - (time.monotonic() - self.started)

    @contextmanager
    def part(self, title: str, limit: float) -> Iterator[None]:
        """A part; used as ``with limits.part(...)``, around all that it does."""
        begun = time.monotonic()
        limit = min(limit, self.left)
        print(f"\n== {title} (at {begun - self.started:.0f} s, limit {limit:.0f} s)", flush=True)

        def stop(*_: Any) -> None:
            raise OutOfTime(f"more than {limit:.0f} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(limit, 0.01))
        try:
            yield
        except (Exception, OutOfTime) as error:  # the next part may still tell something
            print(f"!! {title}: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            print(f"-- {time.monotonic() - begun:.1f} s", flush=True)

    def end(self) -> None:
        """All done: nothing ends the process any more."""
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="config file, or name of a shipped one (ensemble/stage3)")
    add("--checkpoint", help="weights; random ones without")
    add("--size", type=int, default=448, help="side of the images (448)")
    add("--large", type=int, default=16, help="batch of the throughput (16)")
    add("--dtype", default="auto", help="bf16, fp16 or fp32; bf16 where the GPU has it")
    add("--inductor", action="store_true", help="also compiled, which takes minutes")
    add("--inductor-only", action="store_true", help="compiled beside CUDA graphs, little else")
    add("--repeats", type=int, default=20, help="calls that count (20)")
    add("--budget", type=float, default=190, help="seconds once the model stands (190)")
    add("--device", help="cuda, cpu; the first GPU if there is one")
    add("--json", dest="json_file", help="also write the figures to this file")
    add("--model-options", dest="options", nargs="+", metavar="KEY=VALUE", help="top_k=1")
    settings = vars(parser.parse_args())
    try:
        if settings.pop("inductor_only"):
            settings["inductor"] = "only"
        settings["options"] = parse_options(settings["options"])
        run(settings.pop("config"), **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Measures every piece of the prepared model against its bound, and the whole, whose results are
compared with the model's.

Processes compile side by side and then wait; they time one after another, which takes a fraction:
python -m benchmarks.pieces ensemble/stage3 --json pieces.json
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing as mp
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import codmoe  # noqa: F401  # torchvision's operators are declared before timm asks for them
from benchmarks.step_profile import read_trace
from codmoe.compiled.buffers import laid_out, tensors_of_decision
from codmoe.compiled.copies import DTYPES
from codmoe.compiled.graphs import Preparer, Work, _many_shapes
from codmoe.compiled.prepared import CompiledMoE
from codmoe.engine.config import parse_options
from codmoe.evaluation.timing import side_by_side, synchronise, warmed
from codmoe.files import save_json, save_text
from codmoe.inference.zoo import create_model
from codmoe.models.layers import resize_to
from codmoe.models.moe import ModelLevelMoE

Row = dict[str, Any]
ROUTER = ("texture", "edge", "context", "frequency")
PIECES = (
    "backbone backbone@1.5 backbone@0.5",
    " ".join(("router", *ROUTER)),
    "combiner pranet sinet",
    "ujsc zoomnet",
)
"""What one process compiles after the other; ``@`` is an image scale."""


def processes(large: int) -> dict[str, tuple[list[str], int]]:
    """Pieces and images of each process, the most telling first."""
    found = {f"whole {batch}": (["whole"], batch) for batch in (large, 1)}
    for batch in (large, 1):
        for names in PIECES:
            found[f"{names.split()[0]} {batch}"] = (names.split(), batch)
    return found


class Bench:
    """Prepares pieces of one model in one process, and times them.

    Args:
        settings: Of the command line.
        batch: Images.
    """

    def __init__(self, settings: dict[str, Any], batch: int):
        self.settings, self.batch = settings, batch
        self.device, self.size = torch.device(settings["device"]), settings["size"]
        torch.manual_seed(0)
        model = create_model(settings["config"], **settings["options"]).to(self.device)
        self.model = as_if_trained(model, self.size).requires_grad_(False)
        self.prepared = CompiledMoE(
            model, dtype=settings["dtype"], backend=settings["backend"],
            batches=(batch,), groups=(batch,),
        )  # fmt: skip
        self.copies, self.dtype = self.prepared.copies, DTYPES[self.prepared.copies.dtype]
        self.images = pictures(batch, self.size, self.device)
        last = torch.channels_last
        self.cast = partial(laid_out, dtype=self.dtype, memory_format=last)
        self.captures = self.prepared.prepare.captures
        self.routes: list[tuple[str, ...]] = []
        self.works: dict[str, tuple[Preparer, Work]] = {}
        self.rows: dict[str, Row] = {}

    def prepare(self, piece: str) -> None:
        """Compile; it is captured later, when the device is nobody else's and algorithms of
        convolutions can be tried out.
        """
        started = time.monotonic()
        with torch.inference_mode(), _many_shapes(True):
            if piece == "whole":
                self.prepared.prepare.captures = False
                for route in self._routes():
                    self.prepared(self.images, names=route)
                    self.routes.append(route)  # the next may take too long
                    self.rows[piece] = dict(prepare_s=time.monotonic() - started)
            else:
                self._prepare_piece(piece)
        self.rows[piece]["prepare_s"] = time.monotonic() - started
        if self.device.type == "cuda":  # others need it, too
            torch.cuda.empty_cache()

    def _routes(self) -> list[tuple[str, ...]]:
        names, k = self.model.expert_names, self.model.router.top_k
        further = [n for n in names if set(self.model.expert_parts[n].input_scales) - {1.0}]
        plain = [n for n in names if n not in further]
        routes = [tuple(plain[:k]), tuple(plain[-k:])] if len(plain) >= k else []
        routes += [(*plain[: k - 1], *further[:1])] if further else []
        return list(dict.fromkeys(routes))

    def _prepare_piece(self, piece: str) -> None:
        preparer = Preparer(self.device, self.settings["backend"])
        function, args, finish, module = self._piece(piece)
        kept: list[Tensor] = []

        def work(call: Callable[..., Any]) -> None:
            values = finish(call(*args))
            if not kept:
                kept.extend(value.clone() for value in values)
            for buffer, value in zip(kept, values, strict=True):
                buffer.copy_(value)

        compiled = preparer.compiled(piece, function)
        if piece in ("router", *ROUTER):
            compiled = self.copies.in_tf32(compiled)
        work(compiled)
        self.works[piece] = preparer, partial(work, compiled)
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # nobody counts what it does
        with FlopCounterMode(display=False) as counter:
            work(function)
        torch.backends.mha.set_fastpath_enabled(before)
        counts = {str(k): v for k, v in counter.get_flop_counts().get("Global", {}).items()}
        moved = [*tree_leaves(args), *kept, *module.parameters(), *module.buffers()]
        self.rows[piece] = dict(
            gflop=sum(counts.values()) / 1e9,
            gflop_convs=sum(v for k, v in counts.items() if "conv" in k) / 1e9,
            mb=sum(x.numel() * x.element_size() for x in moved if isinstance(x, Tensor)) / 1e6,
        )

    def _piece(self, piece: str):
        """What is compiled, its arguments, what is done with its result, and its weights."""
        modules, images = self.copies.modules, self.images
        name, _, scale = piece.partition("@")
        if name == "backbone":
            scaled = self._scaled(float(scale or 1))
            return modules[name], (scaled,), lambda x: list(map(self.cast, x)), modules[name]
        if name in self.model.experts:
            module = modules[f"experts.{name}"]
            scales = self.model.expert_parts[name].input_scales
            pyramids = [self._pyramid(scale) for scale in scales]
            finish = lambda x: [resize_to(x.logits.float(), (self.size,) * 2)]  # noqa: E731
            return module, (self.cast(images), pyramids), finish, module
        pyramid, router = self._pyramid(1.0), cast(Any, modules["router"])
        if name == "router":
            return router, (images, pyramid), tensors_of_decision, router
        if name == "combiner":
            combiner, decision = cast(Any, modules[name]), router(images, pyramid)
            maps = torch.randn(len(images), decision.indices.shape[1], *images.shape[2:])
            args = maps.to(self.device), decision
            return combiner.combine, args, lambda x: [combiner.calibrated(x)], combiner
        branch, half = router.branches[name], router.convolution_dtype

        def evidence(images: Tensor, pyramid: list[Tensor]) -> Tensor:
            return branch(images, [level.float() for level in pyramid], half)

        return evidence, (images, pyramid), lambda x: [x], branch

    def _scaled(self, scale: float) -> Tensor:
        divisor = self.model.backbone.size_divisor
        side = max(round(self.size * scale / divisor), 1) * divisor
        return self.cast(resize_to(self.images, (side, side)))

    def _pyramid(self, scale: float) -> list[Tensor]:
        return list(map(self.cast, self.copies.modules["backbone"](self._scaled(scale))))

    def time(self) -> Iterator[Row]:
        """Rows of all that was prepared, which is captured first."""
        measured, runs = rates(self.device, self.dtype), {}
        with torch.inference_mode():
            for piece, (preparer, work) in self.works.items():
                runs[piece] = preparer(f"{piece}, {self.batch}", work)
                self.rows[piece] |= dict(how=str(preparer.pieces[-1])) | measured
            for piece, sample in self._samples(runs).items():
                row = self.rows[piece] | dict(ms=1e3 * sample.burst)
                yield dict(piece=piece, batch=self.batch) | row | bound(row)
            if "whole" in self.rows:
                yield from self._time_whole()
            for piece, run in runs.items():
                yield dict(piece=piece, batch=self.batch, top=self._kernels(run))

    def _time_whole(self) -> Iterator[Row]:
        self.prepared.prepare.captures = self.captures
        for buffers in self.prepared.buffers.values():
            for key, work in buffers.pieces.items():
                buffers.pieces[key] = self.prepared.prepare(" ".join(map(str, key)), work)
            alone = {" ".join(map(str, key)): run for key, run in buffers.pieces.items()}
        head = dict(piece="whole", batch=self.batch) | self.rows["whole"]
        calls = {
            "+".join(route): warmed(
                partial(self.prepared, self.images, names=route), self.device, 3
            )
            for route in self.routes
        }
        repeats = self.settings["repeats"]
        for route, sample in side_by_side(calls, self.device, repeats=repeats).items():
            apart = differences(self.model, self.prepared, self.images, route.split("+"))
            yield head | dict(route=route, **sample.figures(self.batch), **apart)
        times = {name: 1e3 * sample.burst for name, sample in self._samples(alone).items()}
        yield head | dict(pieces=times, how=self.prepared.report)

    def _samples(self, runs: dict[str, Work]):
        calls = {name: warmed(_quiet(run), self.device, 2) for name, run in runs.items()}
        return side_by_side(calls, self.device, repeats=self.settings["repeats"]) if calls else {}

    def _kernels(self, run: Work) -> list[Row]:
        with tempfile.TemporaryDirectory() as folder:
            with profile(acc_events=True) as seen:
                for _ in range(3):
                    run()
                synchronise(self.device)
            path = Path(folder) / "trace.json"
            seen.export_chrome_trace(str(path))
            return read_trace(json.loads(path.read_text())["traceEvents"], 3)["top"]


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


def differences(
    model: ModelLevelMoE, prepared: CompiledMoE, images: Tensor, names: Sequence[str]
) -> Row:
    """Differences of probabilities between a prepared model and the float32 model on a route:
    ``max``, ``mean``, and ``mask``, the share of pixels on the other side of 0.5.
    """
    with exact_products(), torch.inference_mode():
        expected = model.on_route(names, run_router=True).mixture(images)[0].sigmoid()
    got = prepared(images, names=names).sigmoid()
    apart, other = (got - expected).abs(), (got > 0.5) != (expected > 0.5)
    return dict(max=apart.max().item(), mean=apart.mean().item(), mask=other.float().mean().item())


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _quiet(run: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode(), torch.autocast("cuda", enabled=False):
            run()

    return call


def rates(device: torch.device, dtype: torch.dtype) -> Row:
    """Operations a second of a large product and of a convolution as ours, and bytes a second."""
    gpu = device.type == "cuda"
    n, side, copied = (8192, 112, 2**30) if gpu else (256, 28, 2**22)
    form: dict[str, Any] = dict(device=device, dtype=dtype)
    a, b = torch.randn(n, n, **form), torch.randn(n, n, **form)
    x = torch.randn(16, 128, side, side, **form).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(128, 128, 3, padding=1).to(**form, memory_format=torch.channels_last)
    source = torch.zeros(copied, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls = dict(matmul=lambda: a @ b, conv=lambda: conv(x), copy=lambda: target.copy_(source))
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    with torch.inference_mode():
        for call in calls.values():
            warmed(call, device, 3)
        best = {name: s.burst for name, s in side_by_side(calls, device, repeats=20).items()}
    torch.backends.cudnn.benchmark = before
    return dict(
        matmul_tflops=2 * n**3 / best["matmul"] / 1e12,
        conv_tflops=2 * 9 * 128**2 * 16 * side**2 / best["conv"] / 1e12,
        copy_gb_s=2 * copied / best["copy"] / 1e9,
    )


def bound(row: Row) -> Row:
    """The least time a piece can take: its operations at the measured rates, or its bytes."""
    others = row["gflop"] - row["gflop_convs"]
    ops = row["gflop_convs"] / row["conv_tflops"] + others / row["matmul_tflops"]
    moved = row["mb"] / row["copy_gb_s"]
    least = max(ops, moved)
    return dict(ops_ms=ops, bytes_ms=moved, bound_ms=least, ratio=row["ms"] / max(least, 1e-9))


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


def _process(pipe: Connection, title: str, place: int, work: tuple, settings: dict) -> None:
    os.nice(place)  # the first ones tell most
    if settings["logs"] is not None:
        name = f"{settings['logs']}.{title.replace(' ', '_')}.log"
        log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
    pieces, batch = work
    limits, bench = Limits(settings["prepare"]), None
    limits.end()  # the parent ends it
    with limits.part(f"model for {title}", limits.left):
        bench = Bench(settings, batch)
    for piece in pieces if bench is not None else ():
        with limits.part(f"{piece}, {batch} images", limits.left):
            bench.prepare(piece)
    synchronise(torch.device(settings["device"]))
    pipe.send("ready")
    pipe.recv()
    try:
        if bench is None:
            raise RuntimeError("no model; its log says why")
        for row in bench.time():
            pipe.send(dict(process=title, **row))
        for piece in [piece for piece in pieces if piece not in bench.rows]:
            error = f"{piece}, {batch} images: not compiled in time or at all; its log says more"
            pipe.send(dict(process=title, error=error))
    except Exception as error:
        pipe.send(dict(process=title, error=f"{type(error).__name__}: {error}"[:300]))
    pipe.send(None)


def run(
    settings: dict[str, Any],
    works: dict[str, tuple[list[str], int]],
    json_file: str | None,
) -> Row:
    """Runs processes; rows are saved as they come.

    Args:
        settings: ``config``, ``options``, ``size``, ``dtype``, ``device``, ``backend``,
            ``repeats``, ``prepare`` (seconds), ``logs`` (what files of what processes print begin
            with; None to print it).
        works: Of :func:`processes`.
        json_file: Where rows go.
    """
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    started, context = time.monotonic(), mp.get_context("spawn")
    results: Row = dict(settings=settings, torch=torch.__version__, rows=[])
    if json_file is not None:
        save_json(json_file, results)  # a file that is already there is kept
    children: dict[Connection, tuple[str, Any]] = {}
    for place, (title, work) in enumerate(works.items()):
        ours, theirs = context.Pipe()
        child = context.Process(target=_process, args=(theirs, title, place, work, settings))
        child.start()
        theirs.close()
        children[ours] = (title, child)
    waiting, last = list(children), started + settings["prepare"] + 30
    while waiting and time.monotonic() < last:
        for pipe in cast(list[Connection], wait(waiting, timeout=1)):
            waiting.remove(pipe)
            if _received(pipe) == "ready":
                say(f"{children[pipe][0]} is ready", started)
    for pipe in waiting:  # still at work would disturb
        children[pipe][1].kill()
        say(f"{children[pipe][0]} was not ready and is ended", started)
    for pipe, (title, child) in children.items():
        if not child.is_alive():
            continue
        say(f"timing begins: {title}", started)
        pipe.send("time")
        while (row := _received(pipe)) is not None:
            results["rows"].append(row)
            say(told(row), started)
            if json_file is not None:
                save_text(json_file, json.dumps(results, indent=1) + "\n", keep=False)
        say(f"timing ended: {title}", started)
        child.join(10)
        child.kill()
    return results


def _received(pipe: Connection) -> Any:
    """What a process sent; None if it has died."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def say(text: str, started: float) -> None:
    print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)


def told(row: Row) -> str:
    """A row in one line."""
    if "ms" in row:
        return (
            f"{row['piece']:14s} {row['batch']:2d} {row['ms']:8.3f} ms, bound "
            f"{row['bound_ms']:7.3f} ms, {row['ratio']:.1f}×; {row['how']}"
        )
    if "median_ms" in row:
        speed = f"{row['images_per_second']:.0f} images/s"
        apart = f"max {row['max']:.1e}, mean {row['mean']:.1e}, mask {row['mask']:.1e}"
        median = f"median {row['median_ms']:.2f} ms"
        return f"{row['route']:18s} {median}, {speed}; from float32: {apart}"
    return str(row.get("error") or row.get("pieces") or f"kernels of {row['piece']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    gpu = torch.cuda.is_available()
    add("config", help="config file, or name of a shipped one (ensemble/stage3)")
    add("--size", type=int, default=448, help="side of the images (448)")
    add("--large", type=int, default=16, help="images of the larger batch (16)")
    add("--dtype", default="auto", help="bf16, fp16 or fp32; bf16 where the GPU has it")
    add("--backend", default="inductor", help="inductor, cudagraph or eager")
    add("--device", default="cuda" if gpu else "cpu", help="cuda, cpu; the GPU if there is one")
    add("--repeats", type=int, default=20, help="calls that count (20)")
    add("--prepare", type=float, default=180, help="seconds for compiling (180)")
    add("--only", nargs="+", default=[""], help="processes whose name begins so, as 'whole'")
    add("--json", dest="json_file", help="rows, saved as they come; logs go beside it")
    add("--model-options", dest="options", nargs="+", metavar="KEY=VALUE", help="top_k=1")
    settings = vars(parser.parse_args())
    settings["options"] = parse_options(settings["options"]) or {}
    settings["logs"] = settings["json_file"] and str(Path(settings["json_file"]).with_suffix(""))
    only, json_file = tuple(settings.pop("only")), settings.pop("json_file")
    known = processes(settings.pop("large"))
    works = {title: work for title, work in known.items() if title.startswith(only)}
    if not works:
        parser.error(f"--only {' '.join(only)}: no process begins so; there are {', '.join(known)}")
    run(settings, works, json_file)


if __name__ == "__main__":
    main()

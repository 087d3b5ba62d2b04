"""Measures every piece of the prepared model against its bound, and candidates beside it.

Processes compile side by side and then wait; they time one after another, which takes a fraction:
python -m benchmarks.pieces ensemble/stage3 --json pieces.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import codmoe  # noqa: F401  # torchvision's operators are declared before timm asks for them
from benchmarks import candidates
from benchmarks.candidates import (
    BESIDE,
    FORMS,
    OPEN,
    TF32,
    Evidence,
    improve,
    options_of,
    put_beside,
    tiles_work,
)
from benchmarks.parity import Limits, _quiet, pictures
from benchmarks.step_profile import read_trace
from codmoe.compiled.buffers import laid_out
from codmoe.compiled.copies import DTYPES, PartCopies
from codmoe.compiled.graphs import Preparer, Work, _many_shapes
from codmoe.compiled.prepared import CompiledMoE
from codmoe.engine.config import parse_options
from codmoe.evaluation.timing import side_by_side, synchronise, warmed
from codmoe.files import save_json, save_text
from codmoe.inference.zoo import create_model
from codmoe.models.layers import resize_to

Task = tuple[str, int, str]
"""A piece, images, and candidates joined by ``+``; none is what the prepared model does."""
Row = dict[str, Any]

ALL = "tiled+patches+views+padded+edges+halves+tf32+heads+attention"
BACKBONE = ("", "tiled", "shifted", "patches", "views", "tiled+patches+views")
ROUTER = "padded+edges+halves+tf32"


def processes(large: int) -> dict[str, list[Task]]:
    """What each process prepares and times, the most telling first."""
    both = (large, 1)

    def every(pieces: str, variants: Sequence[str] = ("",), batches: Sequence[int] = both):
        return [(p, b, v) for b in batches for p in pieces.split() for v in variants]

    return {
        "whole": every("whole"),
        "whole, candidates": every("whole", [ALL]),
        "whole, beside": every("whole", [f"{ALL}+{BESIDE}"], [1, large]),
        "backbone": every("backbone", BACKBONE, [large]),
        "base": every("router combiner sinet pranet"),
        "base of scales": every("zoomnet ujsc"),
        "scales": every("backbone@1.5 backbone@0.5", ("", "tiled+patches+views")),
        "router": every("texture edge context frequency") + every("router", ("", ROUTER)),
        "router, candidates": every("texture", ("", "padded"), [large])
        + every("edge", ("", "padded", "edges", "padded+edges"), [large])
        + every("context", ("", "tf32", "open", "open+tf32"), [large])
        + every("context", ("", "open+tf32"), [1]),
        "experts": every("ujsc", ("", "heads", "attention", "1x1"), [large])
        + every("sinet pranet", ("", "heads", "1x1"), [large]),
        "small": every("backbone", BACKBONE, [1])
        + every("sinet pranet ujsc", ("", "heads+attention"), [1]),
        "tuned": every("backbone", ("", "descent"), [large])
        + every("router zoomnet", ("", "descent"), [large])
        + every("backbone", ("autotune",), [large]),
    }


class Bench:
    """Prepares pieces of one model in one process, and times them.

    Args:
        settings: Of the command line.
        limits: Of the preparation.
    """

    def __init__(self, settings: dict[str, Any], limits: Limits):
        self.settings, self.limits = settings, limits
        self.device = torch.device(settings["device"])
        torch.manual_seed(0)
        self.model = create_model(settings["config"], **settings["options"]).to(self.device)
        if hasattr(self.model.router, "fuse"):
            nn.init.normal_(cast(Any, self.model.router).fuse[-1].weight, std=0.3)
        self.model.eval().requires_grad_(False)
        self.copies = PartCopies(self.model, settings["dtype"], "channels_last")
        self.dtype, self.size = DTYPES[self.copies.dtype], settings["size"]
        self.waiting: dict[Task, Callable[[], Work]] = {}
        self.ready: dict[Task, Work] = {}
        self.rows: dict[Task, Row] = {}
        self.results: dict[Task, list[Tensor]] = {}
        self.whole: dict[Task, CompiledMoE] = {}
        self.inputs: dict[int, tuple[Tensor, dict[float, list[Tensor]]]] = {}

    def prepare(self, task: Task) -> None:
        """Compile; what fails is told, and the next begins."""
        piece, batch, variant = task
        names = tuple(variant.split("+")) if variant else ()
        title = f"{piece}, {batch} images, {variant or 'as it is'}"
        with (
            self.limits.part(title, self.limits.left),
            torch.inference_mode(),
            using(names),
            _many_shapes(True),
        ):
            started = time.monotonic()
            if piece == "whole":
                self._prepare_whole(task, names)
            else:
                self._prepare_piece(task, names)
            self.rows[task]["prepare_s"] = time.monotonic() - started
        if self.device.type == "cuda":  # others need it, too
            torch.cuda.empty_cache()

    def _prepare_whole(self, task: Task, names: tuple[str, ...]) -> None:
        if "tiled" in names and not tiles_work(self.device, self.dtype):
            names = tuple("shifted" if name == "tiled" else name for name in names)
        usual = PartCopies._copy

        def copied(self: PartCopies, name: str, part: nn.Module) -> nn.Module:
            return improve(usual(self, name, part), names)

        PartCopies._copy = copied  # type: ignore[method-assign]
        batch = task[1]
        try:
            prepared = CompiledMoE(
                self.model, dtype=self.copies.dtype, backend=self.settings["backend"],
                batches=(batch,), groups=(batch,),
            )  # fmt: skip
        finally:
            PartCopies._copy = usual  # type: ignore[method-assign]
        if BESIDE in names:
            put_beside(prepared)
        captures, prepared.prepare.captures = prepared.prepare.captures, False
        images = pictures(batch, self.size, self.device)
        for route in self._routes():
            prepared(images, names=route)
        prepared.prepare.captures = captures
        self.whole[task], self.rows[task] = (
            prepared,
            dict(candidates="+".join(names), reason=prepared.report),
        )

    def capture(self) -> Iterator[Row]:
        """Captures what was compiled: algorithms of convolutions are tried out, for which the
        device has to be nobody else's.
        """
        candidates.tries_tiles = True
        for task, make in self.waiting.items():
            with using(tuple(task[2].split("+"))), torch.inference_mode():
                try:
                    self.ready[task] = make()
                except Exception as error:
                    yield named(task) | dict(error=f"{type(error).__name__}: {error}"[:300])
        for task, prepared in self.whole.items():
            with using(tuple(task[2].split("+"))), torch.inference_mode():
                for buffers in prepared.buffers.values():
                    for key, work in buffers.pieces.items():
                        name = " ".join(map(str, key))
                        buffers.pieces[key] = prepared.prepare(name, work)
            self.rows[task]["reason"] = prepared.report
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _routes(self) -> list[tuple[str, ...]]:
        names, k = self.model.expert_names, self.model.router.top_k
        further = [n for n in names if set(self.model.expert_parts[n].input_scales) - {1.0}]
        plain = [n for n in names if n not in further]
        routes = [tuple(plain[:k]), tuple(plain[-k:])] if len(plain) >= k else []
        routes += [(*plain[: k - 1], *further[:1])] if further else []
        return list(dict.fromkeys(routes))

    def _prepare_piece(self, task: Task, names: tuple[str, ...]) -> None:
        piece, batch, variant = task
        preparer = Preparer(self.device, self.settings["backend"])
        copies = self.copies
        if set(names) & set(FORMS):
            copies = PartCopies(self.model, copies.dtype, copies.memory_format)
            for module in copies.modules.values():
                improve(module, names)
        function, args, finish, module = self._piece(copies, piece, batch)
        plain, kept = function, []

        def work(call: Callable[..., Any] | None = None) -> None:
            values = finish((call or compiled)(*args))
            if not kept:
                kept.extend(value.clone() for value in values)
            for buffer, value in zip(kept, values, strict=True):
                buffer.copy_(value)

        compiled = preparer.compiled(piece, function)
        work()
        row = self.rows[task] = dict(how="", reason="")
        self.results[task] = kept

        def make() -> Work:
            made = preparer(f"{piece}, {batch}", work)
            row.update(how=preparer.pieces[-1].how, reason=preparer.pieces[-1].reason)
            return made

        self.waiting[task] = make
        if not variant:
            with using((OPEN,)), FlopCounterMode(display=False) as counter:
                work(plain)
            counts = {str(k): v for k, v in counter.get_flop_counts().get("Global", {}).items()}
            convs = sum(v for k, v in counts.items() if "conv" in k)
            moved = [*tree_leaves(args), *kept, *module.parameters(), *module.buffers()]
            row |= dict(
                gflop=sum(counts.values()) / 1e9,
                gflop_convs=convs / 1e9,
                mb=sum(x.numel() * x.element_size() for x in moved if isinstance(x, Tensor)) / 1e6,
            )

    def _piece(self, copies: PartCopies, piece: str, batch: int):
        """What is compiled, its arguments, what is done with its result, and its weights."""
        images, pyramids = self._inputs(batch)
        cast_to = partial(laid_out, dtype=self.dtype, memory_format=torch.channels_last)
        size = (self.size, self.size)
        name, _, scale = piece.partition("@")
        if name == "backbone":
            module = copies.modules[name]
            scaled = cast_to(self._scaled(images, float(scale or 1)))
            return module, (scaled,), lambda maps: [cast_to(m) for m in maps], module
        if name == "router":
            module = copies.modules[name]
            return module, (images, pyramids[1.0]), _fields, module
        if name == "combiner":
            return self._combiner(copies, batch)
        if name in self.model.experts:
            module = copies.modules[f"experts.{name}"]
            scales = self.model.expert_parts[name].input_scales
            return (
                module,
                (cast_to(images), [pyramids[s] for s in scales]),
                lambda output: [resize_to(output.logits.float(), size)],
                module,
            )
        router = cast(Any, copies.modules["router"])
        module = Evidence(router.branches[name], router.convolution_dtype)
        return module, (images, pyramids[1.0]), lambda x: [x], module

    def _combiner(self, copies: PartCopies, batch: int):
        images, pyramids = self._inputs(batch)
        combiner = cast(Any, copies.modules["combiner"])
        decision = copies.modules["router"](images, pyramids[1.0])
        maps = torch.randn(batch, decision.indices.shape[1], self.size, self.size).to(self.device)
        return combiner.combine, (maps, decision), lambda x: [combiner.calibrated(x)], combiner

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        divisor = self.model.backbone.size_divisor
        side = max(round(self.size * scale / divisor), 1) * divisor
        return resize_to(images, (side, side))

    def _inputs(self, batch: int) -> tuple[Tensor, dict[float, list[Tensor]]]:
        if batch not in self.inputs:
            last = torch.channels_last
            images = pictures(batch, self.size, self.device).contiguous(memory_format=last)
            parts = self.model.expert_parts.values()
            scales = {1.0, *(scale for part in parts for scale in part.input_scales)}
            backbone = self.copies.modules["backbone"]
            pyramids = {
                s: [
                    laid_out(level, self.dtype, last)
                    for level in backbone(laid_out(self._scaled(images, s), self.dtype, last))
                ]
                for s in scales
            }
            self.inputs[batch] = images, pyramids
        return self.inputs[batch]

    def time(self) -> Iterator[Row]:
        """Rows of all that was prepared, base and candidates of a piece side by side."""
        measured = rates(self.device, self.dtype)
        groups: dict[tuple[str, int], list[Task]] = {}
        for task in self.ready:
            groups.setdefault(task[:2], []).append(task)
        repeats = self.settings["repeats"]
        for tasks in groups.values():
            calls = {task: warmed(_quiet(self.ready[task]), self.device, 2) for task in tasks}
            samples = side_by_side(calls, self.device, repeats=repeats)
            base = tasks[0] if not tasks[0][2] else None
            for task, sample in samples.items():
                row = named(task) | dict(ms=1e3 * sample.burst) | self.rows[task] | measured
                if "gflop" in row:
                    row |= bound(row)
                if base is not None and task != base:
                    row["apart"] = apart(self.results[task], self.results[base])
                yield row
        for task, prepared in self.whole.items():
            yield from self._time_whole(task, prepared)

    def _time_whole(self, task: Task, prepared: CompiledMoE) -> Iterator[Row]:
        images, repeats = pictures(task[1], self.size, self.device), self.settings["repeats"]
        calls = {
            route: warmed(partial(prepared, images, names=route), self.device, 3)
            for route in self._routes()
        }
        pieces = next(iter(prepared.buffers.values())).pieces
        alone = {
            " ".join(map(str, key)): warmed(_quiet(run), self.device, 1)
            for key, run in pieces.items()
        }
        times = {
            name: 1e3 * sample.burst
            for name, sample in side_by_side(alone, self.device, repeats=repeats).items()
        }
        for route, sample in side_by_side(calls, self.device, repeats=repeats).items():
            figures = sample.figures(task[1])
            yield named(task) | dict(route="+".join(route), **figures, **self.rows[task])
        yield named(task) | dict(route="", pieces=times)

    def profile(self, seen_before: set[Task]) -> Iterator[Row]:
        """The kernels of pieces that no other process has told of."""
        for task, run in self.ready.items():
            if task in seen_before or (task[1] == 1 and task[2]):
                continue
            call, rounds = warmed(_quiet(run), self.device, 1), 3
            with tempfile.TemporaryDirectory() as folder:
                with profile(acc_events=True) as seen:
                    for _ in range(rounds):
                        call()
                    synchronise(self.device)
                path = Path(folder) / "trace.json"
                seen.export_chrome_trace(str(path))
                read = read_trace(json.loads(path.read_text())["traceEvents"], rounds)
            keys = ("busy_ms", "kernel_ms", "kernels", "top")
            yield named(task) | {key: read[key] for key in keys}


def named(task: Task) -> Row:
    """The beginning of a row."""
    piece, batch, variant = task
    return dict(piece=piece, batch=batch, variant=variant)


def _fields(decision: Any) -> list[Tensor]:
    return [decision.logits, decision.probabilities, decision.indices, decision.weights]


def apart(values: Sequence[Tensor], base: Sequence[Tensor]) -> float:
    """Largest difference, in standard deviations of each result."""
    floating = [(v.float(), b.float()) for v, b in zip(values, base, strict=True)]
    return max(((v - b).abs().max() / b.std().clamp(min=1e-9)).item() for v, b in floating)


@contextmanager
def using(names: tuple[str, ...]) -> Iterator[None]:
    """Inductor's options, and the precision of products, that candidates set."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.mha.get_fastpath_enabled()
    torch.backends.cuda.matmul.allow_tf32 = TF32 in names
    torch.backends.mha.set_fastpath_enabled(OPEN not in names)
    try:
        with torch._inductor.config.patch(options_of(names)):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[0]
        torch.backends.mha.set_fastpath_enabled(before[1])


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


def _process(
    pipe: Connection, title: str, place: int, tasks: Sequence[Task], settings: dict
) -> None:
    os.nice(place)  # the first ones tell most
    if settings["logs"] is not None:
        log = os.open(
            f"{settings['logs']}.{title.replace(', ', '_')}.log", os.O_WRONLY | os.O_CREAT
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
    limits = Limits(settings["prepare"])
    limits.end()  # the parent ends it
    bench = None
    with limits.part(f"model for {title}", settings["prepare"]):
        bench = Bench(settings, limits)
    for task in tasks if bench is not None else ():
        if limits.left > 5:
            bench.prepare(task)
    synchronise(torch.device(settings["device"]))
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        what, *args = asked
        try:
            for row in getattr(bench, what)(*args) if bench is not None else ():
                pipe.send(row)
        except Exception as error:
            pipe.send(dict(piece=title, batch=0, variant="", error=str(error)[:300]))
        pipe.send("done")
    pipe.close()


def run(settings: dict[str, Any], large: int, only: Sequence[str], json_file: str | None) -> Row:
    """Runs all processes; rows are saved as they come.

    Args:
        settings: ``config``, ``options``, ``size``, ``dtype``, ``device``, ``backend``,
            ``repeats``, ``prepare`` (seconds), ``logs`` (what files of what processes print begin
            with; None to print it).
        large: Images of the larger batch.
        only: Names of processes; all for none.
        json_file: Where rows go.
    """
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    started, context = time.monotonic(), mp.get_context("spawn")
    results: Row = dict(settings=settings, torch=torch.__version__, time=[], profile=[])
    if json_file is not None:
        save_json(json_file, results)  # a file that is already there is kept
    children: dict[Connection, tuple[str, Any]] = {}
    for place, (title, tasks) in enumerate(processes(large).items()):
        if only and title not in only:
            continue
        ours, theirs = context.Pipe()
        child = context.Process(target=_process, args=(theirs, title, place, tasks, settings))
        child.start()
        theirs.close()
        children[ours] = (title, child)
    ready: list[Connection] = []
    waiting, last = list(children), started + settings["prepare"] + 30
    while waiting and time.monotonic() < last:
        for pipe in cast(list[Connection], wait(waiting, timeout=1)):
            waiting.remove(pipe)
            if _received(pipe) == "ready":
                ready.append(pipe)
                say(f"{children[pipe][0]} is ready", started)
    for pipe in waiting:  # still at work would disturb
        children[pipe][1].kill()
        say(f"{children[pipe][0]} was not ready and is ended", started)
    ready.sort(key=list(children).index)
    for what in ("time", "profile"):
        for pipe in ready:
            title = children[pipe][0]
            say(f"{'timing' if what == 'time' else 'profiling'} begins: {title}", started)
            told_of = {(r["piece"], r["batch"], r["variant"]) for r in results["profile"]}
            for asked in (("capture",), ("time",)) if what == "time" else ((what, told_of),):
                pipe.send(asked)
                while (row := _received(pipe)) not in ("done", None):
                    row = dict(process=title, **row)
                    results[what].append(row)
                    if what == "time":
                        say(told(row), started)
                    if json_file is not None:
                        save_text(json_file, json.dumps(results, indent=1) + "\n", keep=False)
            say(f"{'timing' if what == 'time' else 'profiling'} ended: {title}", started)
    for pipe in ready:
        pipe.send("end")
    for _, child in children.values():
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
    head = f"{row['piece']:14s} {row['batch']:2d} {row['variant'] or '-':24s}"
    if "ms" in row:
        least = f" bound {row['bound_ms']:7.3f} ms, {row['ratio']:.1f}×" if "ratio" in row else ""
        far = f" apart {row['apart']:.1e} σ" if "apart" in row else ""
        return f"{head} {row['ms']:8.3f} ms{least}{far} {row.get('reason', '')}"
    if "median_ms" in row:
        speed = f"{row['images_per_second']:.0f} images/s"
        return f"{head} {row['route']:18s} median {row['median_ms']:.2f} ms, {speed}"
    return f"{head} {row.get('error') or row.get('pieces')}"


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
    add("--only", nargs="+", default=[], help=f"of {', '.join(processes(16))}")
    add("--json", dest="json_file", help="rows, saved as they come; logs go beside it")
    add("--model-options", dest="options", nargs="+", metavar="KEY=VALUE", help="top_k=1")
    settings = vars(parser.parse_args())
    settings["options"] = parse_options(settings["options"]) or {}
    settings["logs"] = settings["json_file"] and str(Path(settings["json_file"]).with_suffix(""))
    own = {key: settings.pop(key) for key in ("large", "only", "json_file")}
    run(settings, **own)


if __name__ == "__main__":
    main()

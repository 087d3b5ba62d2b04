"""Times one image on a CPU, through torch and through the exports, and measures their masks."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from codmoe.compiled.prepared import CompiledMoE
from codmoe.console import TextTable
from codmoe.datasets.synthetic import KINDS, generate
from codmoe.engine.config import size_of
from codmoe.evaluation.timing import side_by_side, warmed
from codmoe.files import save_json
from codmoe.inference.export.exporting import export, model_for_export
from codmoe.inference.export.onnx_graphs import WholeGraph
from codmoe.inference.export.onnx_runner import OnnxRunner
from codmoe.models.moe import ModelLevelMoE

TORCH = {
    "torch": dict(backend="eager"),
    "torch-bf16": dict(backend="eager", dtype="bf16"),
    "torch-compiled": dict(backend="inductor"),
}
"""Arguments of :class:`CompiledMoE`; the first are those that :class:`Inferencer` takes."""
PROGRAMS = (*TORCH, "onnx", "onnx-sparse", "onnx-int8")
Route = tuple[int, ...] | None
"""Experts by number; None leaves them to the router."""
Program = Callable[[np.ndarray, Route], np.ndarray]


class FixedRoute(OnnxRunner):
    """A bundle that takes a given choice instead of its router's, for timing."""

    route: Route = None

    def run_graph(self, key: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = super().run_graph(key, values)
        if key == "pyramid" and self.route is not None:
            found["indices"] = np.tile(np.array(self.route), (len(found["indices"]), 1))
        return found


def latency(
    source: str | Path,
    *,
    sizes: Sequence[int] | None = None,
    threads: int = 2,
    runs: int = 10,
    programs: Sequence[str] = PROGRAMS,
    images: int = 0,
    limit: float | None = None,
    json_file: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Times one image at a time, from uint8 pixels of the network's size to the probability map.

    Every set of ``top_k`` experts is forced in turn, for routes differ in cost and a router without
    training knows one only. Programs take turns run by run, so that what else the machine does
    falls on all of them.

    Args:
        source: Checkpoint, name of a model that ships trained, or config (random weights).
        sizes: Sides of the images; None for the one at which the model is tested.
        threads: Of torch and of onnxruntime.
        runs: Timed runs of each program on each route.
        programs: Which of :data:`PROGRAMS`: ``torch`` as :class:`Inferencer` runs it on a CPU,
            ``torch-bf16`` in half precision, ``torch-compiled``; ``onnx`` (every expert runs),
            ``onnx-sparse``, and that in 8 bit, ``onnx-int8``.
        images: Synthetic images on which the masks of each, cut at one half, are measured.
        limit: Milliseconds that the slowest route of every sparse program may take.
        json_file: Where the figures go, too.

    Returns:
        One row a program and size: ``median`` over all routes and ``slowest`` route, in ms; with
        ``images`` also ``iou``, the mean.

    Raises:
        ValueError: An argument is wrong, or ``limit`` is exceeded.
    """
    unknown = [name for name in programs if name not in PROGRAMS]
    if unknown or not programs:
        raise ValueError(f"programs={list(programs)}: choose from {', '.join(PROGRAMS)}")
    if runs < 1 or threads < 1:
        raise ValueError(f"runs={runs}, threads={threads}: give 1 or more")
    console = Console()
    model = model_for_export(source)
    names = model.expert_names
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in sizes or size_of(model.cfg)[:1]:
            built = _programs(model, size, threads, programs, console)
            ious = {name: _iou(program, size, images) for name, program in built.items() if images}
            for program, times in _time(built, model, size, runs).items():
                routes = {"+".join(names[i] for i in r): t * 1e3 for r, t in times.items()}
                slowest = max(routes, key=routes.__getitem__)
                rows.append(
                    dict(
                        program=program,
                        size=size,
                        median=statistics.median(routes.values()),
                        slowest=routes[slowest],
                        slowest_route=slowest,
                        routes=routes,
                        iou=ious.get(program),
                    )
                )
    finally:
        torch.set_num_threads(before)
    load = os.getloadavg()[0]
    _print(rows, f"{source}; one image, {threads} threads; load average {load:.1f}")
    if json_file is not None:
        meta = dict(source=str(source), threads=threads, runs=runs, load=load)
        save_json(json_file, dict(meta, torch=torch.__version__, rows=rows))
    over = [r for r in rows if limit and r["program"] != "onnx" and r["slowest"] > limit]
    if over:
        found = ", ".join(f"{r['program']} at {r['size']} px {r['slowest']:.0f} ms" for r in over)
        raise ValueError(f"the slowest route takes more than {limit:g} ms: {found}")
    return rows


def _programs(
    model: ModelLevelMoE, size: int, threads: int, programs: Sequence[str], console: Console
) -> dict[str, Program]:
    built: dict[str, Program] = {}
    for name in programs:
        console.print(f"making {name} for {size} px", style="dim")
        if name in TORCH:
            built[name] = _torch(model, TORCH[name])
            continue
        with tempfile.TemporaryDirectory() as folder:
            int8 = name == "onnx-int8"
            kind = "onnx-sparse" if int8 else name
            export(model, Path(folder) / name, format=kind, size=size, check=False, int8=int8)
            built[name] = _onnx(FixedRoute(Path(folder) / name, threads=threads))
    return built


def _torch(model: ModelLevelMoE, options: Mapping[str, Any]) -> Program:
    prepared = CompiledMoE(model, batches=(1,), **options)
    preprocess = WholeGraph(model).normalised

    @torch.inference_mode()
    def run(images: np.ndarray, chosen: Route) -> np.ndarray:
        names = chosen and [model.expert_names[index] for index in chosen]
        return prepared(preprocess(torch.from_numpy(images)), names=names).sigmoid().numpy()

    return run


def _onnx(runner: FixedRoute) -> Program:
    def run(images: np.ndarray, chosen: Route) -> np.ndarray:
        runner.route = chosen
        return runner(images)["probability"]

    return run


def _iou(program: Program, size: int, count: int) -> float:
    """Mean IoU over images that neither training nor 8-bit ranges have seen."""
    found = []
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        image, mask = generate([index, 1], kind, size, visibility=0.7)
        seen = program(np.ascontiguousarray(image.transpose(2, 0, 1)[None]), None)[0, 0] > 0.5
        found.append((seen & (mask > 0)).sum() / max((seen | (mask > 0)).sum(), 1))
    return float(np.mean(found))


def _time(
    programs: Mapping[str, Program], model: ModelLevelMoE, size: int, runs: int
) -> dict[str, dict[Route, float]]:
    """Median seconds of each program on each route."""
    images = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    cpu, found = torch.device("cpu"), {name: {} for name in programs}
    for route in combinations(range(len(model.experts)), model.router.top_k):
        # The first ones allocate, and compile.
        calls = {
            name: warmed(partial(program, images, route), cpu, 2)
            for name, program in programs.items()
        }
        for name, sample in side_by_side(calls, cpu, repeats=runs).items():
            found[name][route] = statistics.median(sample.seconds)
    return found


def _print(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    cells = []
    for row in rows:
        times = (f"{row['median']:.0f}", f"{row['slowest']:.0f}")
        which = "every expert" if row["program"] == "onnx" else row["slowest_route"]
        iou = "" if row["iou"] is None else f"{row['iou']:.3f}"
        cells.append([row["program"], str(row["size"]), *times, which, iou])
    heads = ["program", "px", "median route (ms)", "slowest route (ms)", "which", "IoU"]
    TextTable(heads, cells, (0, -1), title).print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="checkpoint, 'small', which ships, or a config, with random weights"
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="sides in pixels; the model's own")
    parser.add_argument("--threads", type=int, default=2, help="of torch and onnxruntime (2)")
    parser.add_argument("--runs", type=int, default=10, help="timed runs a program and route (10)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--images", type=int, default=0, help="synthetic, to measure IoU on")
    parser.add_argument("--limit", type=float, help="fail if a route takes more milliseconds")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    try:
        latency(
            args.model,
            sizes=args.sizes,
            threads=args.threads,
            runs=args.runs,
            programs=args.programs,
            images=args.images,
            limit=args.limit,
            json_file=args.json,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

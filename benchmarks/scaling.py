"""Times training on one process and on several, with each option of DDP."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.step_timing import work
from codmoe.compiled.speed import PARTS
from codmoe.console import TextTable
from codmoe.engine.config import load_config, parse_options
from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.engine.stages import child_environment
from codmoe.files import keep_old, save_json
from codmoe.messages import suggest


def expert_load(loads: Sequence[Sequence[Sequence[int]]], names: Sequence[str]) -> dict[str, Any]:
    """Imbalance of the choices, as largest over mean, 1 at perfect balance.

    Args:
        loads: Images routed to each expert, by rank, step and expert.
        names: Of the experts.

    Returns:
        ``images_per_step[rank][name]``; ``between_experts`` over all ranks and steps;
        ``between_ranks[name]``, the mean over the steps in which anybody chose the expert.
    """
    counts = torch.tensor(loads, dtype=torch.float64)  # rank, step, expert
    if counts.numel() == 0:
        return {}
    totals = counts.sum((0, 1))
    mean_of_ranks = counts.mean(0)
    ratio = counts.amax(0) / mean_of_ranks.clamp(min=1e-9)
    used = mean_of_ranks > 0
    between = (ratio * used).sum(0) / used.sum(0).clamp(min=1)
    per_step = counts.mean(1)
    return dict(
        images_per_step=[dict(zip(names, rank.tolist(), strict=True)) for rank in per_step],
        between_experts=float(totals.max() / totals.mean()),
        between_ranks=dict(zip(names, between.tolist(), strict=True)),
    )


ROOT = Path(__file__).resolve().parents[1]
_DDP = "model_wrapper_cfg"
VARIANTS: dict[str, dict[str, Any]] = {
    "as_configured": {},
    "find_unused": {f"{_DDP}.find_unused_parameters": True},
    "no_find_unused": {f"{_DDP}.find_unused_parameters": False},
    "static_graph": {f"{_DDP}.static_graph": True, f"{_DDP}.find_unused_parameters": False},
    "no_bucket_view": {f"{_DDP}.gradient_as_bucket_view": False},
    "buckets_10mb": {f"{_DDP}.bucket_cap_mb": 10},
    "buckets_100mb": {f"{_DDP}.bucket_cap_mb": 100},
    "broadcast_buffers": {f"{_DDP}.broadcast_buffers": True},
    "sparse": {"model.train_dispatch": "sparse", "model.train_top_k": None},
    "dense": {"model.train_dispatch": "dense"},
    "merged_groups": {"optim_wrapper.constructor": "MergedGroupsConstructor"},
    "plain_groups": {"optim_wrapper.constructor": "DefaultOptimWrapperConstructor"},
    "fused_adamw": {"optim_wrapper.optimizer.fused": True},
    "no_fused_adamw": {"optim_wrapper.optimizer.fused": False},
    "fast_norm": {"fast_norm": True},
    "contiguous": {"memory_format": "contiguous"},
    "compile_backbone": {"compile.backbone": True},
    "compile": {f"compile.{part}": True for part in PARTS},
    "no_graphs": {"compile.mode": None, **{f"compile.{part}": True for part in PARTS}},
    "float32": {"amp": False},
    "cudnn_benchmark": {"env_cfg.cudnn_benchmark": True},
    "no_cudnn_benchmark": {"env_cfg.cudnn_benchmark": False},
    # What 16 GB are enough for, as stage 3 is configured.
    "recomputed": {
        "model.expert_execution": "checkpoint",
        "model.checkpoint_backbone": "extra",
        "train_dataloader.batch_size": 12,
    },
}
"""Overrides of each variant; ``a+b`` joins two."""

DEFAULT_VARIANTS = (
    "as_configured",
    "no_find_unused",
    "no_find_unused+no_bucket_view",
    "no_find_unused+buckets_100mb",
    "static_graph",
    "broadcast_buffers",
    "sparse",
)


def overrides(variant: str) -> dict[str, Any]:
    """Config overrides of a variant such as ``"no_find_unused+no_bucket_view"``.

    Raises:
        ValueError: A part of the name is unknown.
    """
    options: dict[str, Any] = {}
    for part in variant.split("+"):
        if part not in VARIANTS:
            raise ValueError(f"variant {part!r} is unknown; {suggest(part, VARIANTS)}")
        options |= VARIANTS[part]
    return options


def reference_of(variant: str) -> str:
    """The variant without what concerns DDP alone: one process has none of it."""
    kept = [
        part
        for part in variant.split("+")
        if any(not key.startswith(_DDP) for key in VARIANTS[part])
    ]
    return "+".join(kept) or "as_configured"


def benchmark_scaling(
    config: str,
    *,
    gpus: int = 2,
    variants: Sequence[str] = DEFAULT_VARIANTS,
    steps: int = 60,
    warmup: int = 20,
    data: str = "synthetic",
    size: int | None = None,
    data_root: str | None = None,
    checkpoint: str | None = None,
    options: Mapping[str, Any] | None = None,
    json_file: str | None = None,
    reference: str | None = None,
    work_dir: str = "work_dirs/scaling",
    timeout: float = 300,
    budget: float | None = None,
) -> dict[str, Any]:
    """Trains some steps of a config on one and on ``gpus`` processes, for every variant.

    One process is measured as ``tools/train.py`` starts it, without DDP, once for all variants that
    differ in DDP alone, and for comparison once more under torchrun. Figures and errors are
    written after each run, so that an interrupted benchmark leaves what it has.

    Args:
        config: Config file or name.
        gpus: Processes to compare with one; without GPUs, processes on the CPU.
        variants: Names of ``VARIANTS``, joined by ``+`` where several are meant.
        steps: Steps that count.
        warmup: Steps before them.
        data: "synthetic" (random tensors that lie on the device: no loader) or "config".
        size: Side of the synthetic images in pixels; the pipeline's by default.
        data_root: Folder of the data set instead of the config's.
        checkpoint: Weights to start from, for the routing that a trained router chooses.
        options: Further overrides of the config.
        json_file: Where the figures go.
        reference: JSON file of an earlier call for the same config, options and data on the same
            machine; its runs of one process without DDP are not made again.
        work_dir: Folder of logs.
        timeout: Seconds after which one run is ended.
        budget: Seconds after which no further run is started.

    Returns:
        ``runs``, a list of figures or errors, and what was asked for.

    Raises:
        ValueError, FileNotFoundError: The config, a variant or a number is not right.
    """
    if data not in ("synthetic", "config"):
        raise ValueError(f"data={data!r} is unknown; use 'synthetic' or 'config'")
    if min(gpus, steps, warmup) < 1:
        raise ValueError(f"gpus={gpus}, steps={steps}, warmup={warmup} must all be 1 or more")
    there = torch.cuda.device_count()
    if there and gpus > there:
        raise ValueError(f"gpus={gpus}, but this machine has {there}")
    load_config(config, options)
    plan = _plan(variants, gpus)
    spec = dict(config=config, data=data, size=size, data_root=data_root, checkpoint=checkpoint)
    spec |= dict(steps=steps, warmup=warmup)
    payload = dict(
        spec, gpus=gpus, options=options or {}, torch=torch.__version__, runs=[], not_run=[]
    )
    payload["device"] = torch.cuda.get_device_name() if there else "CPU"
    if reference:
        payload["runs"] = _reference(reference, payload)
        had = {(run["variant"], run["processes"], run["launcher"]) for run in payload["runs"]}
        plan = [run for run in plan if run not in had]
    if json_file:
        keep_old(json_file)
    console, started = Console(), time.monotonic()
    for number, (variant, processes, launcher) in enumerate(plan):
        left = None if budget is None else budget - (time.monotonic() - started)
        if left is not None and left < 20:
            payload["not_run"] = [f"{v}, {n} process(es)" for v, n, _ in plan[number:]]
            break
        folder = Path(work_dir) / f"{number}_{variant}_{processes}{launcher}"
        full = dict(spec, options={**(options or {}), **overrides(variant)})
        began = time.monotonic()
        limit = timeout if left is None else min(timeout, left)
        run = _launch(full, folder, processes, launcher, limit)
        run |= dict(variant=variant, launcher=launcher, processes=processes)
        run["total_seconds"] = round(time.monotonic() - began, 1)
        payload["runs"].append(run)
        said = run.get("error") or f"{run['images_per_second']:.1f} images/s"
        console.print(f"{variant}, {processes} × {launcher}: {said}", markup=False)
        _efficiencies(payload["runs"], gpus)
        if json_file:
            _rewrite(Path(json_file), payload)
    _table(payload).print()
    for name in payload["not_run"]:
        console.print(f"not run, the budget was spent: {name}")
    if json_file:
        _rewrite(Path(json_file), payload)
        print(f"json: {json_file}")
    return payload


MODES = (
    (0, "compile", "first start"),
    (0, "compile", "second start"),
    (0, "as_configured", ""),
    (0, "compile+no_graphs", ""),
    (0, "compile+cudnn_benchmark", ""),
    (0, "float32", ""),
    (1, "compile", ""),
    (1, "as_configured", ""),
    (0, "compile+recomputed", ""),
    (0, "sparse", ""),
    (0, "sparse+compile", ""),
)
"""Which config, variant and start, the most wanted first: what time does not suffice for is at the
end. What is compiled later reads what the first compiled, but where ``mode`` differs."""


def benchmark_modes(
    configs: Sequence[str],
    *,
    json_file: str,
    steps: int = 20,
    warmup: int = 6,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    work_dir: str = "work_dirs/modes",
    timeout: float = 300,
    budget: float = 520,
) -> dict[str, Any]:
    """Trains some steps in each way that one process can: eager, compiled, captured.

    The figures are written after each run, with a profile of two steps after the timed ones
    (:func:`~benchmarks.step_profile.read_trace`). A call whose ``json_file`` is there goes on: it
    makes what is missing or failed. Compiled code lies in ``work_dir``, so that the first start is
    one without any, and whatever comes later reads it.

    Args:
        configs: Stage 3's, and stage 1's if that is measured, too; see ``MODES``.
        json_file: Where the figures go.
        steps: Steps that count.
        warmup: Steps before them.
        size: Side of the synthetic images in pixels; the pipeline's by default.
        options: Further overrides of the configs.
        only: Variants to measure; all by default.
        work_dir: Folder of logs and compiled code.
        timeout: Seconds after which one run is ended.
        budget: Seconds after which no run goes on; those in which processes compiled pieces do not
            count.

    Returns:
        ``runs``, a list of figures or errors, ``not_run``, and what was asked for.

    Raises:
        ValueError: The file is of another measurement, a variant is unknown, or there are no
            configs or more than two.
    """
    if not 1 <= len(configs) <= 2:
        raise ValueError(f"{len(configs)} configs: give stage 3's, and stage 1's after it")
    known = list(dict.fromkeys(variant for _, variant, _ in MODES))
    for variant in only:
        if variant not in known:
            raise ValueError(f"--only {variant!r} is no mode; {suggest(variant, known)}")
    asked = dict(configs=list(configs), steps=steps, warmup=warmup, size=size)
    asked |= dict(options=dict(options or {}), torch=torch.__version__)
    asked["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    payload = dict(_begun(json_file, asked), not_run=[])
    done = {(run["config"], run["variant"], run["start"]) for run in payload["runs"]}
    plan = [(configs[i], v, start) for i, v, start in MODES if i < len(configs)]
    plan = [run for run in plan if run not in done and (not only or run[1] in only)]
    console, started, compiling = Console(), time.monotonic(), 0.0
    for number, (config, variant, start) in enumerate(plan):
        left = budget - (time.monotonic() - started - compiling)
        if left < 20:
            payload["not_run"] = [" ".join(run).strip() for run in plan[number:]]
            break
        own = overrides(variant)
        length = dict(steps=1, warmup=1) if variant == "float32" else {}
        name = "_".join([*Path(config).with_suffix("").parts[-2:], variant, *start.split()])
        spec = dict(asked, config=config, data="synthetic", profile=True, **length)
        spec |= dict(options={**(options or {}), **own}, cache=str(Path(work_dir, "cache")))
        run = _launch(spec, Path(work_dir) / name, 1, "none", min(timeout, left))
        run |= dict(config=config, variant=variant, start=start, launcher="none", processes=1)
        payload["runs"].append(run)
        compiling += (run.get("compiling") or {}).get("seconds", 0.0)
        _gradient_errors(payload["runs"])
        _rewrite(Path(json_file), payload)
        said = run.get("error") or f"{run['images_per_second']:.1f} images/s{_busy(run)}"
        console.print(f"{config}, {variant} {start}: {said}", markup=False)
    _modes_table(payload).print()
    for left_out in payload["not_run"]:
        console.print(f"not run, the budget was spent: {left_out}", markup=False)
    _rewrite(Path(json_file), payload)
    print(f"json: {json_file}")
    return payload


def _begun(json_file: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call measured and is not to be measured again."""
    if not Path(json_file).is_file():
        return dict(asked, runs=[])
    try:
        earlier = json.loads(Path(json_file).read_text(encoding="utf-8"))
        same = {key: earlier[key] for key in asked} == json.loads(json.dumps(asked))
        runs = [run for run in earlier["runs"] if "error" not in run]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{json_file} is no file of this command; give another --json") from error
    if not same:
        raise ValueError(
            f"{json_file} is of other configs, options, steps, device or torch; give another --json"
        )
    return dict(asked, runs=runs)


def _gradient_errors(runs: list[dict[str, Any]]) -> None:
    """How far the first gradients of each part are from those in float32 of the same config, over
    their length; and from the eager ones.
    """
    for key, reference in (("float32", "float32"), ("eager", "as_configured")):
        found = {r["config"]: r["first_gradients"] for r in runs
                 if r["variant"] == reference and r.get("first_gradients")}  # fmt: skip
        for run in runs:
            exact, own = found.get(run["config"]), run.get("first_gradients")
            if exact and own and run["variant"] != reference and "sparse" not in run["variant"]:
                run[f"gradients_from_{key}"] = {
                    part: math.dist(own[part], exact[part]) / max(math.hypot(*exact[part]), 1e-30)
                    for part in exact
                    if part in own
                }


def _busy(run: Mapping[str, Any]) -> str:
    """What the device did in a step, in one line for people."""
    found = run.get("profile")
    if not found:
        return ""
    parts = [f"{name} {part['ms']:.0f}" for name, part in list(found["parts"].items())[:5]]
    return (
        f"; the device is busy for {found['busy_ms']:.0f} of {1e3 * run['step_seconds']:.0f} ms, "
        f"in {found['kernels']:.0f} kernels by {found['launches']:.0f} launches: {', '.join(parts)}"
    )


def _modes_table(payload: Mapping[str, Any]) -> TextTable:
    notes = [
        "busy: ms of a step in which the device ran kernels; if near all of it, that is the bound",
        "start: seconds from the start of the process to the end of its first step",
        "pieces: compiled then, of all",
        "gradients: of the first step, the part that is farthest from those in float32 / eager",
    ]
    heads = "config,variant,start,images/s,step ms,busy,GiB,start s,pieces,gradients".split(",")
    rows = []
    for run in payload["runs"]:
        names = [run["config"], run["variant"], run["start"]]
        if "error" in run:
            rows.append([*names, "failed"])
            continue
        low, high = (1e3 * t for t in run["step_seconds_p10_p90"])
        peaks = [peak for peak in run["peak_allocated"] if peak]
        made = run.get("compiling")
        errors = (run.get(f"gradients_from_{key}") for key in ("float32", "eager"))
        row = [
            f"{run['images_per_second']:.1f}",
            f"{1e3 * run['step_seconds']:.0f} ({low:.0f} to {high:.0f})",
            f"{run['profile']['busy_ms']:.0f}" if run.get("profile") else "-",
            f"{max(peaks) / 2**30:.1f}" if peaks else "-",
            f"{run['start_seconds']:.0f}",
            f"{made['compiled']} of {made['pieces']}" if made else "-",
            " / ".join(f"{max(e.values()):.1e}" if e else "-" for e in errors),
        ]
        rows.append([*names, *row])
    title = f"training, {payload['device']}, torch {payload['torch']}"
    return TextTable(heads, rows, title=title, notes=notes)


def _plan(variants: Sequence[str], gpus: int) -> list[tuple[str, int, str]]:
    """(variant, processes, launcher) in the order of the runs; a reference before its variants."""
    plan: list[tuple[str, int, str]] = []
    for variant in variants:
        overrides(variant)
        wanted = [(reference_of(variant), 1, "none")]
        if gpus > 1:
            wanted.append((variant, gpus, "pytorch"))
        if variant == "as_configured" and gpus > 1:
            wanted.append((variant, 1, "pytorch"))
        plan += [run for run in wanted if run not in plan]
    return plan


def _reference(file: str, payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of one process without DDP in the file of an earlier call."""
    make = f"make it with --gpus 1 --json {file}, or leave --reference out"
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist; {make}")
    try:
        earlier = json.loads(Path(file).read_text(encoding="utf-8"))
        runs = [run for run in earlier["runs"] if run["launcher"] == "none" and "error" not in run]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no file that --json of this tool wrote; {make}") from error
    for key in ("config", "options", "data", "size", "data_root", "checkpoint", "torch", "device"):
        if earlier.get(key) != json.loads(json.dumps(payload[key])):  # tuples are lists there
            raise ValueError(
                f"{file} was measured with {key}={earlier.get(key)!r}, this call has "
                f"{payload[key]!r}; leave --reference out"
            )
    return [dict(run, reference=file) for run in runs]


def _launch(
    spec: dict[str, Any], folder: Path, processes: int, launcher: str, timeout: float
) -> dict[str, Any]:
    """One run in processes of its own; its figures, or ``error``."""
    folder.mkdir(parents=True, exist_ok=True)
    out, spec_file = (folder / "result.json").absolute(), (folder / "spec.json").absolute()
    out.unlink(missing_ok=True)
    told = dict(spec, out=str(out), work_dir=str(folder), started=time.time())
    spec_file.write_text(json.dumps(told))
    environment = child_environment()
    if spec.get("cache"):
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(spec["cache"]).absolute())
    command = [sys.executable, "-m"]
    if launcher != "none":
        command = ["bash", str(ROOT / "tools" / "dist_run.sh"), "-m", str(processes)]
    command += ["benchmarks.scaling", spec["config"], "--worker", str(spec_file)]
    with (folder / "output.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environment
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    result = json.loads(out.read_text()) if out.is_file() else {}
    if "seconds" in result:
        return _summary(result)
    if "error" not in result:
        said = f"no result within {timeout:.0f} s" if code is None else f"exit code {code}"
        result["error"] = f"{said}; see {folder / 'output.log'}"
    return result


def _end(process: subprocess.Popen) -> None:
    """torchrun ends its workers, which are sessions of their own, when it is told to end."""
    for signum, patience in ((signal.SIGTERM, 40), (signal.SIGKILL, 10)):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """Figures of one run from the times of its ranks."""
    # A step is over when the slowest rank is.
    seconds = [max(of_ranks) for of_ranks in zip(*result.pop("seconds"), strict=True)]
    waits = result.pop("waits")
    ordered = sorted(seconds)
    median = statistics.median(seconds)
    images = result["processes"] * result["batch_per_process"]
    loads = result.pop("loads")
    return dict(
        result,
        images_per_step=images,
        step_seconds=median,
        step_seconds_p10_p90=[ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]],
        images_per_second=images / median,
        images_per_second_mean=images * len(seconds) / sum(seconds),
        loader_wait_share=[sum(own) / sum(seconds) for own in waits],
        expert_load=expert_load(loads, result["expert_names"]),
    )


def _efficiencies(runs: list[dict[str, Any]], gpus: int) -> None:
    single = {
        run["variant"]: run["images_per_second"]
        for run in runs
        if run["launcher"] == "none" and "error" not in run
    }
    for run in runs:
        one = single.get(reference_of(run["variant"]))
        if one and "error" not in run and run["launcher"] != "none":
            run["efficiency"] = run["images_per_second"] / (run["processes"] * one)


def _rewrite(path: Path, payload: dict[str, Any]) -> None:
    """The file of this very run, whole after each write; what was there before is kept already."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    os.replace(save_json(part, payload), path)


def _table(payload: dict[str, Any]) -> TextTable:
    title = f"{payload['config']}, {payload['data']} data, torch {payload['torch']}"
    notes = [
        "efficiency: images/s over the processes times one process without DDP",
        "step: median, 10th and 90th percentile",
        "load: largest over mean, between experts / between ranks (worst expert)",
    ]
    heads = "variant,processes,images/s,efficiency,step ms,GiB,loader %,MB sent,load".split(",")
    rows = []
    for run in payload["runs"]:
        processes = f"{run['processes']}{'' if run['launcher'] == 'none' else ' DDP'}"
        if "error" in run:
            rows.append([run["variant"], processes, "failed"])  # why was printed above
            continue
        low, high = (1e3 * t for t in run["step_seconds_p10_p90"])
        peaks = [peak for peak in run["peak_allocated"] if peak]
        sent = (run["ddp"] or {}).get("bytes_per_step")
        load = run["expert_load"]
        row = [
            run["variant"],
            processes,
            f"{run['images_per_second']:.1f}",
            f"{run['efficiency']:.1%}" if "efficiency" in run else "",
            f"{1e3 * run['step_seconds']:.0f} ({low:.0f} to {high:.0f})",
            f"{max(peaks) / 2**30:.1f}" if peaks else "-",
            f"{100 * max(run['loader_wait_share']):.1f}",
            f"{sent / 1e6:.0f}" if sent else "-",
            f"{load['between_experts']:.2f} / {max(load['between_ranks'].values()):.2f}",
        ]
        rows.append(row)
    return TextTable(heads, rows, title=title, notes=notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (experts/joint)")
    parser.add_argument("--modes", nargs="*", metavar="CONFIG",
                        help="compare eager, compiled and captured training in one process, "
                             "of this config, too; goes on where --json ends")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=(), metavar="MODE", help="these modes alone")
    parser.add_argument("--gpus", type=int, default=2, help="processes to compare with one")
    parser.add_argument("--steps", type=int, default=60, help="training steps that count")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them")
    parser.add_argument("--variants", nargs="+", default=DEFAULT_VARIANTS, metavar="A+B",
                        help="of " + ", ".join(VARIANTS))  # fmt: skip
    parser.add_argument("--data", default="synthetic", help="synthetic, on the device, or config")
    parser.add_argument(
        "--size", type=int, help="side of synthetic images; the config's by default"
    )
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--checkpoint", help="weights to start from; random ones by default")
    parser.add_argument("--json", help="also write the figures to this file, after every run")
    parser.add_argument(
        "--reference", metavar="FILE", help="take runs of one process from an earlier --json"
    )
    parser.add_argument("--work-dir", default="work_dirs/scaling",
                        help="logs; output.log says when timing begins and ended")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run")
    parser.add_argument("--budget", type=float, help="seconds after which no run is started")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # one process of one run
    parser.add_argument("--launcher", default="none", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.launcher)
        leave_cpu_process_group()
        return
    settings = {key: getattr(args, key) for key in (
        "gpus steps warmup data size data_root checkpoint reference work_dir timeout budget".split()
    )}  # fmt: skip
    try:
        options = parse_options(args.cfg_options)
        if args.modes is not None:
            kept = "steps warmup size work_dir timeout".split()
            benchmark_modes(
                [args.config, *args.modes],
                json_file=args.json or "modes.json",
                options=options,
                only=args.only,
                budget=520 if args.budget is None else args.budget,
                **{key: settings[key] for key in kept},
            )
            return
        benchmark_scaling(
            args.config, variants=args.variants, options=options, json_file=args.json, **settings
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Times a config's data loader, with no model behind it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.runner import Runner
from rich.console import Console

from codmoe.console import TextTable
from codmoe.engine.config import load_config, parse_options
from codmoe.engine.own_data import set_data
from codmoe.files import save_json
from codmoe.machine import available_cores
from codmoe.registry import DATASETS, accepted_arguments

READING = "sample before the pipeline"


def worker_counts(cores: int) -> list[int]:
    """0, the powers of two below ``cores``, and ``cores``."""
    return [0, *[2**k for k in range(16) if 2**k < cores], cores]


def set_cache(node: Any, on: bool) -> bool:
    """Switch ``cache`` on, unless it already is, or off, in every data set below ``node``.

    Returns:
        Whether there was a data set that can be cached.
    """
    found = False
    if isinstance(node, dict):
        kind = node.get("type")
        # A group hands its cache down only to entries that name none.
        known = isinstance(kind, str) and kind in DATASETS and "datasets" not in node
        accepted = accepted_arguments(DATASETS.get(kind)) if known else {}
        if accepted is None or "cache" in accepted:
            node["cache"] = (node.get("cache") or True) if on else False
            found = True
        for value in node.values():
            found |= set_cache(value, on)
    return found


def _leaves(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from _leaves(inner)
    else:
        yield dataset


class _Clock:
    """Time passed and time of the CPU, in milliseconds; the second minds no other process."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> np.ndarray:
        """Both since the start, (2,)."""
        now = time.perf_counter(), time.process_time()
        return 1000 * (np.array(now) - self.start)


class _Timed:
    """A pipeline that adds up how long each of its transforms takes."""

    def __init__(self, transforms: Sequence[Callable], spent: dict[str, np.ndarray]) -> None:
        self.transforms, self.spent = transforms, spent

    def __call__(self, data: dict) -> dict:
        for place, transform in enumerate(self.transforms):
            clock = _Clock()
            data = transform(data)
            name = f"{place + 1} {type(transform).__name__}"
            self.spent[name] = self.spent.get(name, 0.0) + clock.read()
        return data


def time_transforms(dataset: Any, samples: int = 200) -> dict[str, list[float]]:
    """Milliseconds per image of each transform and of what comes before them, in this process.

    Reading files is a transform (``LoadCODPair``); taking the sample from the cache, or making it,
    comes before them.

    Args:
        dataset: One of this package, or a group of them.
        samples: How many are drawn, with repetition.

    Returns:
        ``{step: [time passed, time of the CPU]}``.
    """
    spent: dict[str, np.ndarray] = {READING: np.zeros(2)}
    leaves = list(_leaves(dataset))
    pipelines = [leaf.pipeline for leaf in leaves]
    for leaf in leaves:
        leaf.pipeline = _Timed(leaf.pipeline.transforms, spent)
    try:
        np.random.seed(0)  # which the transforms draw from
        draw = np.random.default_rng(0).integers(len(dataset), size=samples)
        dataset[int(draw[0])]  # what only the first access costs
        spent.update({name: np.zeros(2) for name in spent})
        clock = _Clock()
        for index in draw:
            dataset[int(index)]
        whole = clock.read()
    finally:
        for leaf, pipeline in zip(leaves, pipelines, strict=True):
            leaf.pipeline = pipeline
    spent[READING] = np.maximum(whole - sum(spent.values()), 0)
    return {name: (value / samples).tolist() for name, value in spent.items()}


def measure(
    dataset: Any, loader: Mapping[str, Any], workers: int, seconds: float
) -> tuple[float, float]:
    """Images per second of a loader with a number of workers, after they have started.

    Args:
        dataset: Already built, so that its cache is filled once.
        loader: The loader's config; its sampler is replaced by an endless one.
        workers: 0 loads in this process.
        seconds: How long to measure.

    Returns:
        The rate, and the milliseconds of CPU time per image that this process spends: with workers
        that is receiving alone, and a thousand divided by it a limit that no worker lifts.
    """
    settings = {k: v for k, v in deepcopy(dict(loader)).items() if k != "dataset"}
    settings.update(dataset=dataset, num_workers=workers, persistent_workers=False)
    settings.update(sampler=dict(type="InfiniteSampler", shuffle=True, seed=0))
    settings["pin_memory"] = settings.get("pin_memory", False) and torch.cuda.is_available()
    if not workers:
        settings.pop("prefetch_factor", None)
    batches = iter(Runner.build_dataloader(settings, seed=0))
    # Until what was loaded ahead while the workers started is used up.
    for _ in range(2 + 2 * workers * (settings.get("prefetch_factor") or 2)):
        next(batches)
    images, clock = 0, _Clock()
    while (spent := clock.read())[0] < 1000 * seconds:
        images += len(next(batches)["inputs"])
    del batches
    return 1000 * images / float(spent[0]), float(spent[1]) / images


def verdict(rates: Mapping[int, float], target: float, cores: int) -> str:
    """From what number of workers the loader keeps up with a target, in one sentence.

    Only what was measured counts; where nothing measured reaches the target, what even scaling
    would take is told as the estimate that it is.
    """
    enough = [workers for workers, rate in sorted(rates.items()) if rate >= target]
    if enough:
        return (
            f"from {enough[0]} worker(s) on the loader is not the bottleneck for {target:,.0f} "
            f"images/s: {rates[enough[0]]:,.0f} images/s measured"
        )
    # In the training process itself nothing is sent from process to process: no guide to workers.
    parallel = {workers: rate for workers, rate in rates.items() if workers} or dict(rates)
    best = max(parallel, key=parallel.__getitem__)
    # Workers above the number of cores share them.
    each = rates[best] / max(min(best, cores), 1)
    return (
        f"{target:,.0f} images/s not reached: {rates[best]:,.0f} at best, with {best} worker(s) "
        f"on {cores} core(s). Not measured: {-(-target // each):.0f} would do if workers scaled "
        "evenly"
    )


def benchmark_loader(
    config: str | Path,
    *,
    part: str = "train",
    workers: Sequence[int] | None = None,
    caches: Sequence[bool | None] = (None,),
    target: float = 1000,
    seconds: float = 5,
    data_root: str | None = None,
    options: Mapping[str, Any] | None = None,
    json_file: str | Path | None = None,
) -> dict[str, Any]:
    """Measure a config's loader, print tables and write JSON.

    Args:
        config: Path, or name of a shipped config.
        part: ``train``, ``val`` or ``test``.
        workers: Numbers of worker processes; None chooses up to the number of cores.
        caches: For each, measure with the cache on (True), off (False) or as configured (None).
        target: Images per second that the model takes.
        seconds: How long each number of workers is measured.
        data_root: Instead of the config's.
        options: Overrides of the config.
        json_file: Also write the figures there.

    Raises:
        FileNotFoundError: No such config or data.
        ValueError: The config has faults, or nothing in it can be cached.
    """
    console, cores = Console(), available_cores()
    workers = worker_counts(cores) if workers is None else sorted(set(workers))
    if min(workers, default=-1) < 0:
        raise ValueError(f"--workers {list(workers)}: give one or more numbers, 0 or above")
    if target <= 0 or seconds <= 0:
        raise ValueError(f"--target {target} and --seconds {seconds} must be above 0")
    cv2.setNumThreads(0)  # as in training: workers are the parallelism
    runs = []
    for cache in caches:
        cfg = load_config(config, options)
        loader = cfg.get(f"{part}_dataloader")
        if not loader:
            raise ValueError(f"{cfg.config_file} has no {part}_dataloader")
        set_data(cfg, data_root)
        if cache is not None and not set_cache(loader.dataset, cache):
            raise ValueError(f"{part}_dataloader.dataset: no data set in it has a cache")
        start = time.perf_counter()
        dataset = DATASETS.build(loader.dataset)
        built = time.perf_counter() - start
        name = {None: "as configured", True: "cached", False: "not cached"}[cache]
        console.print(f"{name}: {len(dataset):,} samples, ready after {built:.1f} s", style="bold")
        transforms = time_transforms(dataset)
        _transform_table(transforms).print()
        rates, receiving = {}, {}
        for count in workers:
            rates[count], receiving[count] = measure(dataset, loader, count, seconds)
            line = f"{count:3d} workers {rates[count]:9,.1f} images/s"
            if count:
                line += f", {receiving[count]:.2f} ms of CPU time an image to receive"
            if count > cores:
                line += f"  (more workers than the {cores} cores)"
            console.print(line, highlight=False, soft_wrap=True)
        said = verdict(rates, target, cores)
        console.print(said, highlight=False, soft_wrap=True)
        runs.append(
            dict(
                cache=name,
                samples=len(dataset),
                seconds_to_build=built,
                milliseconds_per_image=transforms,
                images_per_second=rates,
                cpu_milliseconds_in_main_process=receiving,
                verdict=said,
            )
        )
    report = dict(
        config=str(config), part=part, cores=cores, target=target, batch_size=loader.batch_size
    )
    report.update(opencv=cv2.__version__, torch=torch.__version__, runs=runs)
    if json_file is not None:
        console.print(f"wrote {save_json(json_file, report)}", soft_wrap=True)
    return report


def _transform_table(transforms: Mapping[str, Sequence[float]]) -> TextTable:
    times = dict(transforms, sum=np.sum(list(transforms.values()), axis=0))
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in times.items()]
    rows.append(["images/s of one core", *(f"{1000 / value:,.0f}" for value in times["sum"])])
    return TextTable(["in one process, per image", "ms", "ms of CPU time"], rows)


CACHES = dict(config=[None], on=[True], off=[False], both=[False, True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (ensemble/stage3)")
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--part", choices=("train", "val", "test"), default="train")
    parser.add_argument("--workers", type=int, nargs="+", help="by default up to all cores")
    parser.add_argument("--cache", choices=CACHES, default="config", help="of decoded images")
    parser.add_argument(
        "--target", type=float, default=1000, help="images/s that the model takes (1000)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="for each number of workers (5)")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args()
    try:
        benchmark_loader(
            args.config,
            part=args.part,
            workers=args.workers,
            caches=CACHES[args.cache],
            target=args.target,
            seconds=args.seconds,
            data_root=args.data_root,
            options=parse_options(args.cfg_options),
            json_file=args.json,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

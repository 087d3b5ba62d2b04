"""Tests a checkpoint: every data set of the config in one pass, as a table, JSON and markdown."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from codmoe import __version__
from codmoe.compiled.prepared import attach_engine
from codmoe.engine.hooks.progress import bare_model
from codmoe.engine.hooks.results import save_extremes
from codmoe.engine.launch import test_runner
from codmoe.evaluation.attributes import AttributeMetric, breakdown
from codmoe.evaluation.cod_metric import CODMetric
from codmoe.evaluation.conventions import CONVENTIONS
from codmoe.evaluation.routing_metric import RoutingMetric
from codmoe.evaluation.tables import (
    breakdown_to_markdown,
    print_breakdown,
    print_table,
    result_rows,
    save_json,
    to_markdown,
)
from codmoe.files import replacing


def test(
    cfg: Config,
    checkpoint: str,
    *,
    experts: bool = False,
    json_file: str | None = None,
    out_dir: str | None = None,
    grid: str | None = None,
    grid_rows: int = 8,
    extremes: str | None = None,
    compile: bool | str | Mapping[str, Any] = False,
) -> dict[str, Any]:
    """Run the config's test data sets.

    Args:
        cfg: As ``engine.launch.prepare`` returns it.
        checkpoint: Weights file.
        experts: Also score each expert alone, their uniform mixture and the per-image oracle, and
            break all of them down by attributes of the images.
        json_file: Where the result goes; ``<work_dir>/test.json`` by default. A markdown table of
            the same name is written beside it, and one of the breakdown as ``..._attributes.md``.
        out_dir: New folder for the prediction maps.
        grid: Picture file for a grid of the first ``grid_rows`` images.
        grid_rows: Number of images in it.
        extremes: Folder for a grid per data set of the images with the best, median and worst IoU.
        compile: Prepare the model for speed; see :class:`Inferencer`.

    Returns:
        The payload of the JSON file: ``table[dataset][source]``, ``routing``,
        ``routing_by_dataset``, ``conventions``, what was run,
        ``routing_weights[dataset][stem]`` ({expert: weight}) and, with experts,
        ``attributes[dataset][stem]`` and ``breakdown[dataset]``; with extremes, which images they
        are. Empty except on the first process.
    """
    _set_sources(cfg, maps=experts or bool(grid or extremes), attributes=experts)
    hooks = list(cfg.get("custom_hooks") or [])
    if out_dir:
        hooks.append(dict(type="SaveMapsHook", directory=out_dir))
    if grid:
        hooks.append(dict(type="GridHook", path=grid, rows=grid_rows))
    cfg.custom_hooks = hooks
    runner = test_runner(cfg, checkpoint)
    engine = None
    if compile is not False:
        size = cfg.test_dataloader.get("batch_size")
        engine = attach_engine(bare_model(runner), compile, size)
    started = time.time()
    scalars = runner.test()
    if not is_main_process():
        return {}
    metrics = runner.test_evaluator.metrics
    table = next((m.table for m in metrics if isinstance(m, CODMetric)), {})
    if engine is not None:
        print(engine.report)
    payload = dict(
        config=str(cfg.get("config_file")),
        checkpoint=str(checkpoint),
        seconds=round(time.time() - started, 1),
        engine=engine and engine.report.splitlines(),
        versions=dict(codmoe=__version__, torch=torch.__version__),
        conventions=CONVENTIONS,
        routing={k: v for k, v in scalars.items() if "/" not in k and _is_routing(k)},
        routing_by_dataset=_routing_by_dataset(metrics),
        table=table,
        routing_weights=next((m.weights() for m in metrics if isinstance(m, RoutingMetric)), {}),
    )
    attributes = next((m.table for m in metrics if isinstance(m, AttributeMetric)), {})
    breakdowns = {name: _breakdown(table[name], attributes[name]) for name in attributes}
    if breakdowns:
        payload |= dict(attributes=attributes, breakdown=breakdowns)
    rows = result_rows(table)
    print_table(rows, title=f"{checkpoint}")
    for name, breakdown_rows in breakdowns.items():
        print_breakdown(breakdown_rows, title=f"{name}: IoU by attribute")
    path = Path(json_file or Path(cfg.work_dir) / "test.json")
    if extremes:
        try:
            images = save_extremes(runner, table, Path(extremes))
            where = os.path.relpath(extremes, path.parent)
            payload["extremes"] = dict(folder=where, datasets=images)
        except Exception as error:  # a long test must not lose its figures to a picture
            print(f"no pictures in {extremes} ({type(error).__name__}: {error})")
            extremes = None
    save_json(path, payload)
    _write(path.with_suffix(".md"), to_markdown(rows))
    if breakdowns:
        text = "\n".join(f"## {k}\n\n{breakdown_to_markdown(v)}" for k, v in breakdowns.items())
        _write(path.with_name(f"{path.stem}_attributes.md"), text)
    for what, where in (("json", path), ("maps", out_dir), ("grid", grid), ("extremes", extremes)):
        if where:
            print(f"{what}: {where}")
    return payload


def _is_routing(key: str) -> bool:
    starts = ("share_", "chosen_", "IoU_", "mutual_", "top1_", "regret")
    return key.startswith(starts) and not key.endswith("_pooled")


def _routing_by_dataset(metrics: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Shares, mutual information and the rest on each data set by itself."""
    records = next((m.records for m in metrics if isinstance(m, RoutingMetric)), [])
    found = {}
    for name in dict.fromkeys(record["dataset"] for record in records):
        # A metric of its own: this one's records are of all data sets.
        own = RoutingMetric().compute_metrics([r for r in records if r["dataset"] == name])
        found[name] = {k: v for k, v in own.items() if _is_routing(k)}
    return found


def _breakdown(rows: Mapping[str, Mapping[str, Any]], attributes: Mapping[str, Any]) -> list[dict]:
    ious = {
        source: {stem: image["IoU"] for stem, image in row["images"].items()}
        for source, row in rows.items()
    }
    return breakdown(ious, attributes)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _set_sources(cfg: Config, maps: bool, attributes: bool) -> None:
    """Has every expert's map made and scored, and attributes gathered, in all test evaluators."""
    cfg.model.evaluate_all_experts = maps
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    for evaluator in evaluators:
        if isinstance(evaluator, Mapping) and evaluator.get("type") == "CODMetric" and maps:
            evaluator["sources"] = "all"
    cfg.test_evaluator = evaluators + ([dict(type="AttributeMetric")] if attributes else [])

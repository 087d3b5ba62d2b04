"""The report of a run of all stages: one HTML file to look at or to attach to a mail."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from codmoe.evaluation.conventions import LOWER_IS_BETTER
from codmoe.evaluation.intervals import Interval
from codmoe.evaluation.tables import format_value, ranks, result_rows, table_notes
from codmoe.files import save_text
from codmoe.visualization.report.conclusions import (
    METRICS,
    Gain,
    ensemble_gains,
    findings,
    outcome,
)
from codmoe.visualization.report.data import RunRecord, StageRecord, load_run, number
from codmoe.visualization.report.images import PICTURES_MB, image_data
from codmoe.visualization.report.plots import (
    colours,
    cost_plots,
    learning_curves,
    routing_curves,
    threshold_curves,
)

TITLES = dict(
    setup="What was run",
    results="Results",
    differences="Is the ensemble better?",
    cost="Cost beside quality",
    thresholds="Precision, recall and F over the threshold",
    curves="Learning curves",
    routing="Routing",
    images="Test images",
    attributes="Which expert where",
    notes="To be aware of",
)
LABELS = dict(
    uniform="uniform mixture of stage 1",
    router="router, stage 2",
    ensemble="ensemble, stage 3",
    oracle="oracle of stage 1",
)
_QUALITY = dict(
    mutual_information="mutual information",
    top1_max_share="most popular first choice",
    top1_accuracy="first choice right",
    regret="regret, IoU",
)
FEW = 10
_AFTER = dict(uniform="all experts, equal weights", mixture="the ensemble")
_WARNINGS = 20
# Of a data set's config, what says nothing about which images it holds.
_UNTOLD = ("type", "pipeline", "cache", "datasets", "dataset", "_scope_", "max_share")


@dataclass
class Cell:
    """A cell of a table that is more than text: its class, and what stands below it."""

    text: str
    kind: str = "num"
    bold: bool = False
    detail: str = ""


def write_report(work_dir: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Writes the report of what ``codmoe stages`` left in a work directory.

    The page loads nothing: style, script, plots and pictures are within it. A section for which
    nothing is there is left out. An earlier report is kept under a dated name.

    Args:
        work_dir: Folder with ``table.json``.
        out: HTML file; ``<work_dir>/report.html`` by default.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no ``table.json``.
        ValueError: It is not what ``codmoe stages`` writes.
    """
    run = load_run(work_dir)
    return save_text(out or run.folder / "report.html", render(run))


def render(run: RunRecord) -> str:
    """The page as text."""
    gains = ensemble_gains(run)
    views: dict[str, Any] = dict(
        setup=_setup(run),
        results=[_results(run, dataset) for dataset in run.table],
        differences=[view for dataset in run.table if (view := _differences(dataset, gains))],
        curves=list(_curves(run)),
        routing=_routing(run),
        cost=_costs(run),
        thresholds=list(_thresholds(run)),
        images=(images := image_data(run)),
        attributes=any(each["attributes"] for each in images.get("datasets", ())),
        notes=True,
    )
    loader = PackageLoader("codmoe.visualization.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        **views,
        title=f"Mixture of experts on {', '.join(run.table)}",
        titles={key: title for key, title in TITLES.items() if views[key]},
        name=run.folder.resolve().name,
        written=f"{run.written:%Y-%m-%d %H:%M}",
        outcome=list(outcome(run, gains)),
        findings=list(findings(run, gains)),
        warnings=list(_warnings(run)),
        data=as_script(dict(images, few=FEW, colours=colours(run.expert_names))),
        few=FEW,
        limit=PICTURES_MB,
    )


def as_script(data: Any) -> Markup:
    """JSON that cannot end the ``<script>`` it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _setup(run: RunRecord) -> dict[str, Any]:
    """A row per stage, then machine, model and data, what the stages started from, and command."""
    heads = ("", "config", "epochs", "best", "images", "batch", "rate", "seed", "precision", "time")
    rows = [_stage_row(stage) for stage in run.stages]
    kept = [i for i in range(len(heads)) if i < 2 or any(row[i] != "-" for row in rows)]
    start = [
        [stage.title, name, *(format_value(number(found.get(k))) for k in ("own", "assembled"))]
        for stage in run.stages
        for name, found in (stage.assembly.get("experts") or {}).items()
        if isinstance(found, Mapping)
    ]
    return dict(
        stages=dict(head=[heads[i] for i in kept], rows=[[row[i] for i in kept] for row in rows]),
        machine=" ".join(_machine(run)),
        details=[*_model(run), *_data(run)],
        start=start,
        command=_command(run),
        resumed=any(stage.training.resumed for stage in run.stages),
    )


def _stage_row(stage: StageRecord) -> list[str]:
    done, opening = stage.finished, stage.training.opening
    loader = (stage.training.config or {}).get("train_dataloader") or {}
    batch = loader.get("batch_size", "-")
    rates = [number(r.get("base_lr", r.get("lr"))) for r in stage.training.train]
    best = format_value(number(done.get("best")))
    if done.get("best_epoch") is not None:
        best += f" (epoch {done['best_epoch']})"
    images = done.get("images")
    return [
        stage.title,
        stage.config,
        str(done.get("epochs", "-")),
        best,
        f"{images:,}" if isinstance(images, int) else "-",
        f"{batch} × {opening['processes']}" if opening else str(batch),
        f"{max(rates):.2g}" if rates else "-",
        opening.get("seed", "-"),
        str(done.get("precision", "-")),
        duration(number(done.get("seconds"))),
    ]


def duration(seconds: float) -> str:
    """``"2 h 5 min"``, ``"3 min 20 s"``, ``"12 s"``; a dash for NaN."""
    if not seconds >= 0:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _machine(run: RunRecord) -> Iterator[str]:
    machines = dict.fromkeys(
        f"{o['processes']} × {o['device']}, codmoe {o['codmoe']}, torch {o['torch']}, "
        f"Python {o['python']}"
        for stage in run.stages
        if (o := stage.training.opening)
    )
    tests = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in stage.result["versions"].items())
        for stage in run.stages
        if isinstance(stage.result.get("versions"), Mapping)
    )
    if machines:
        yield f"Trained on {'; '.join(machines)}."
    elif tests:
        yield f"Tested with {'; '.join(tests)}."
    if number(run.payload.get("seconds")) >= 0:
        yield f"The last call, with the tests, took {duration(number(run.payload['seconds']))}."


def _model(run: RunRecord) -> Iterator[list[str]]:
    cfg = next((c for s in reversed(run.stages) if (c := s.training.config)), None)
    model = (cfg or {}).get("model") or {}
    backbone = model.get("backbone")
    if isinstance(backbone, Mapping):
        backbone = backbone.get("name") or backbone.get("type")
    if backbone:
        yield ["backbone", str(backbone)]
    if model.get("experts"):
        experts = [name for name, part in model["experts"].items() if part is not None]
        chosen = f", {model['top_k']} an image" if model.get("top_k") else ""
        yield ["experts", ", ".join(sorted(experts)) + chosen]
    if run.payload.get("weights"):
        yield ["weights", ", ".join(map(str, run.payload["weights"]))]


def _data(run: RunRecord) -> Iterator[list[str]]:
    for part, label in (("train", "trained on"), ("val", "validated on"), ("test", "tested on")):
        told: dict[str, list[str]] = {}
        for stage in run.stages:
            loader = (stage.training.config or {}).get(f"{part}_dataloader") or {}
            if loader.get("dataset"):
                titles = told.setdefault(describe(loader["dataset"]), [])
                titles.append(stage.title.removeprefix("stage "))
        for line, numbers in told.items():
            several = f": stage {' and '.join(numbers)}" if len(told) > 1 else ""
            yield [label + several, line]


def describe(dataset: Any) -> str:
    """A data set's config in a line: its type and what chooses its images."""
    if not isinstance(dataset, Mapping):
        return str(dataset)
    inner, within = dataset.get("datasets"), dataset.get("dataset")
    own = [f"{k}={_plain(v)}" for k, v in dataset.items() if k not in _UNTOLD and v is not None]
    if dataset.get("type") == "TolerantDataset":
        return describe(within)
    if isinstance(inner, Mapping):
        parts = [f"{name}: {describe(each)}" for name, each in inner.items() if each is not None]
        return "; ".join(parts + own)
    text = f"{dataset.get('type', '')} ({', '.join(own)})" if own else str(dataset.get("type"))
    return f"{text} of {describe(within)}" if isinstance(within, Mapping) else text


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    return str(value)


def _command(run: RunRecord) -> str:
    call = run.payload.get("call")
    if not isinstance(call, Mapping):
        return ""
    words = ["codmoe", "stages", *[stage.config for stage in run.stages]]
    if call.get("gpus", 1) != 1:
        words += ["--gpus", str(call["gpus"])]
    words += ["--work-dir", str(run.folder)]
    for key in ("data_root", "images", "masks"):
        if call.get(key):
            words += [f"--{key.replace('_', '-')}", str(call[key])]
    if call.get("options"):
        words += ["--cfg-options", *map(str, call["options"])]
    return shlex.join(words)


def _results(run: RunRecord, dataset: str) -> dict[str, Any]:
    """Source × metric, and the experts before and after stage 3."""
    # Only what is there: an older run may lack a row.
    sources = [*run.experts(dataset), *[name for name in LABELS if name in run.table[dataset]]]
    rows = result_rows(run.table, datasets=[dataset], sources=sources)
    rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    metrics = list(rows[0])[3:]
    best = ranks(rows, metrics)
    body = [
        [
            LABELS.get(row["source"], f"{row['source']}, stage 1"),
            str(row["n"]),
            *[Cell(format_value(row[k]), bold=best.get((i, k)) == 1) for k in metrics],
        ]
        for i, row in enumerate(rows)
    ]
    notes = table_notes(rows, metrics)
    head = ["source", "n", *metrics]
    return dict(dataset=dataset, head=head, rows=body, notes=notes, change=_change(run, dataset))


def _change(run: RunRecord, dataset: str) -> dict[str, Any]:
    before, after = run.table[dataset], run.after(dataset)
    names = [n for n in (*run.experts(dataset), "uniform", "oracle") if n in after and n in before]
    pairs = [(number(before[n].get("IoU")), number(after[n].get("IoU"))) for n in names]
    rows = [
        ["IoU after stage 1", *[format_value(a) for a, _ in pairs]],
        ["IoU after stage 3", *[format_value(b) for _, b in pairs]],
        ["points", *[f"{100 * (b - a):+.1f}" for a, b in pairs]],
    ]
    return dict(head=["", *names], rows=rows) if names else {}


def _differences(dataset: str, gains: Mapping[str, Mapping[str, Gain]]) -> dict[str, Any]:
    """Against what, and by how much in each metric."""
    found = [gain for gain in gains[dataset].values() if gain.intervals]
    if not found:
        return {}
    keys = [key for key in METRICS if all(key in gain.intervals for gain in found)]
    rows = [[gain.label, *[_interval(key, gain.intervals[key]) for key in keys]] for gain in found]
    n = f"{found[0].intervals[keys[0]].n:,}"
    return dict(dataset=dataset, n=n, head=["ensemble minus", *keys], rows=rows)


def _interval(key: str, found: Interval) -> Cell:
    if not math.isfinite(found.difference):
        return Cell("-")
    worse = (found.difference > 0) if key in LOWER_IS_BETTER else (found.difference < 0)
    kind = "num" + (" sure" + (" worse" if worse else "") if found.excludes_zero else "")
    known = math.isfinite(found.low)
    ends = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}" if known else ""
    return Cell(f"{100 * found.difference:+.2f}", kind, detail=ends)


def _curves(run: RunRecord) -> Iterator[tuple[str, list[Markup]]]:
    """Losses, validation and learning rate of every stage."""
    for stage in run.stages:
        if plots := learning_curves(stage.training, run.expert_names):
            again = stage.training.resumed
            more = f", resumed {again} time{'s' if again > 1 else ''}" if again else ""
            yield f"{stage.title}: {stage.config}{more}", plots


def _routing(run: RunRecord) -> dict[str, Any]:
    """Curves of the shares and of the mutual information, and the figures on the test images."""
    plots = [
        (f"{stage.title}: {stage.config}", figures)
        for stage in run.stages
        if (figures := routing_curves(stage.training, run.expert_names))
    ]
    stages = (("router", "stage 2"), ("ensemble", "stage 3"))
    found = run.payload.get("routing") or {}
    numbers = {label: found[key] for key, label in stages if found.get(key)}
    keys = dict.fromkeys(key for each in numbers.values() for key in each)
    shown = {
        key: f"{kind}: {key.removeprefix(start)}"
        for start, kind in (("share_", "share"), ("chosen_", "chosen"))
        for key in keys
        if key.startswith(start)
    }
    shown |= {key: label for key, label in _QUALITY.items() if key in keys}
    rows = []
    for key, label in shown.items():
        values = [number(each.get(key)) for each in numbers.values()]
        # Of a router that ignores the image four decimals would be zeros.
        small = key == "mutual_information"
        rows.append(
            [label]
            + [f"{v:.2g}" if small and math.isfinite(v) else format_value(v) for v in values]
        )
    experts = len(run.expert_names)
    view = dict(plots=plots, head=["", *numbers], rows=rows, experts=experts)
    return view | dict(ceiling=f"{math.log(max(experts, 1)):.3f}") if plots or numbers else {}


def _costs(run: RunRecord) -> dict[str, Any]:
    """Parameters, operations and time of each source, beside its IoU on each data set."""
    cost = run.ensemble.get("cost") or {}
    sources = cost.get("sources") or {}
    if not sources:
        return {}
    tables = {name: run.after(name) for name in run.table}
    rows = [
        [
            _AFTER.get(name, f"{name} alone"),
            *(f"{number(each.get(key)) / 1e6:.2f}" for key in ("parameters", "active")),
            *(f"{number(each.get('flops')) / 1e9:.2f}", f"{number(each.get('ms')):.1f}"),
            *(format_value(number((t.get(name) or {}).get("IoU"))) for t in tables.values()),
        ]
        for name, each in sources.items()
    ]
    head = ["", "parameters, M", "used by an image, M", "GFLOPs", "ms"]
    several = len(tables) > 1
    return dict(
        head=head + [f"IoU, {name}" if several else "IoU" for name in tables],
        rows=rows,
        plots=[(name, cost_plots(sources, t, run.expert_names)) for name, t in tables.items()],
        size=" × ".join(str(side) for side in cost.get("size", ())),
        device=cost.get("device", ""),
        precision=cost.get("precision", ""),
    )


def _thresholds(run: RunRecord) -> Iterator[tuple[str, list[Markup]]]:
    for dataset in run.table:
        if plots := threshold_curves(run.after(dataset), run.expert_names):
            yield dataset, plots


def _warnings(run: RunRecord) -> Iterator[tuple[str, list[tuple[str, int]], int]]:
    """Title, warnings with their counts, and how many more, of each stage that has some."""
    for stage in run.stages:
        found = list(stage.training.warnings.items())
        if found:
            yield stage.title, found[:_WARNINGS], max(0, len(found) - _WARNINGS)

"""The report of a run of all stages: one HTML file to look at or to attach to a mail."""

from __future__ import annotations

import base64
import io
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from codmoe.evaluation.attributes import breakdown
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
from codmoe.visualization.report.plots import learning_curves, routing_curves

TITLES = dict(
    setup="What was run",
    results="Results",
    differences="Is the ensemble better?",
    curves="Learning curves",
    routing="Routing",
    attributes="Which expert where",
    pictures="Best, median and worst images",
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
# Differences of this size have the full colour: 0.05 of IoU, 0.3 of a weight.
_IOU_SPAN, _SHARE_SPAN = 0.05, 0.30
_WARNINGS = 20
# Of a data set's config, what says nothing about which images it holds.
_UNTOLD = ("type", "pipeline", "cache", "datasets", "dataset", "_scope_", "max_share")


@dataclass
class Cell:
    """A cell of a table that is more than text: its class, style, and what stands below it."""

    text: str
    kind: str = "num"
    style: str = ""
    bold: bool = False
    detail: str = ""


def write_report(work_dir: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Writes the report of what ``tools/run_stages.py`` left in a work directory.

    The page loads nothing: style, plots and pictures are within it. A section for which nothing is
    there is left out. An earlier report is kept under a dated name.

    Args:
        work_dir: Folder with ``table.json``.
        out: HTML file; ``<work_dir>/report.html`` by default.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no ``table.json``.
        ValueError: It is not what ``tools/run_stages.py`` writes.
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
        attributes=list(_attributes(run)),
        pictures=list(_pictures(run)),
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
        few=FEW,
        iou_span=f"{_IOU_SPAN:.2f}",
        share_span=f"{_SHARE_SPAN:.1f}",
    )


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
    words = ["python", "tools/run_stages.py", *[stage.config for stage in run.stages]]
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


def _attributes(run: RunRecord) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Expert × attribute for each data set, first of the last stage, then of the one before."""
    for dataset in run.table:
        shown = []
        for stage in reversed(run.stages):
            iou, share = _iou_table(stage, dataset, run), _share_table(stage, dataset)
            if iou or share:
                shown.append(dict(title=stage.title, iou=iou, share=share))
        if shown:
            yield dataset, shown


def _iou_table(stage: StageRecord, dataset: str, run: RunRecord) -> dict[str, Any]:
    rows = (stage.result.get("breakdown") or {}).get(dataset) or []
    experts = [name for name in run.expert_names if rows and name in rows[0].get("IoU", {})]
    if not experts:
        return {}
    others = [name for name in ("uniform", "mixture", "oracle") if name in rows[0]["IoU"]]
    body = []
    for row, names in _named(rows):
        ious = [number(row["IoU"].get(name)) for name in experts]
        finite = [value for value in ious if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else math.nan
        cells = [
            _shaded(value, (value - mean) / _IOU_SPAN, row["n"], bold=name in row.get("best", ()))
            for name, value in zip(experts, ious, strict=True)
        ]
        cells += [_shaded(number(row["IoU"][name]), 0, row["n"]) for name in others]
        body.append([*names, *cells])
    others = ["the mixture" if name == "mixture" else name for name in others]
    return dict(head=["attribute", "images", "n", *experts, *others], rows=body)


def _share_table(stage: StageRecord, dataset: str) -> dict[str, Any]:
    rows = share_rows(stage.result, dataset)
    if not rows:
        return {}
    overall = rows[0]["share"]
    body = [
        [*names, *(_shaded(value, (value - overall[name]) / _SHARE_SPAN, row["n"])
                   for name, value in row["share"].items())]
        for row, names in _named(rows)
    ]  # fmt: skip
    return dict(head=["attribute", "images", "n", *overall], rows=body)


def share_rows(result: Mapping[str, Any], dataset: str) -> list[dict[str, Any]]:
    """Mean weight of each expert on the images of each bin of each attribute.

    Args:
        result: JSON of a test.
        dataset: Name of the data set.

    Returns:
        Rows ``attribute``, ``bin``, ``n``, ``share`` ({expert: weight}), the first over all images;
        empty where the result has no weights or no attributes.
    """
    weights = (result.get("routing_weights") or {}).get(dataset) or {}
    attributes = (result.get("attributes") or {}).get(dataset) or {}
    if not weights or not set(weights) <= set(attributes):
        return []
    names = list(next(iter(weights.values())))
    by_expert = {name: {stem: w[name] for stem, w in weights.items()} for name in names}
    overall = {name: sum(each.values()) / len(each) for name, each in by_expert.items()}
    rows = [dict(attribute="all", bin="", n=len(weights), share=overall)]
    for row in breakdown(by_expert, attributes):
        rows.append(dict(attribute=row["attribute"], bin=row["bin"], n=row["n"], share=row["IoU"]))
    return rows


def _named(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """Each row with its first cells: the attribute where it begins, the bin and the count."""
    before = None
    for row in rows:
        few = "few" if row["n"] < FEW else ""
        name = "" if row["attribute"] == before else row["attribute"].replace("_", " ")
        yield row, [name, Cell(row["bin"], few), Cell(str(row["n"]), f"num {few}".strip())]
        before = row["attribute"]


def _shaded(value: float, strength: float, n: int, *, bold: bool = False) -> Cell:
    """A figure on blue (more) or orange (less); ``strength`` from -1 to 1 gives how much."""
    if not math.isfinite(value):
        return Cell("-")
    if n < FEW:
        return Cell(f"{value:.3f}", "num few", bold=bold)
    strength = max(-1.0, min(1.0, strength)) if math.isfinite(strength) else 0.0
    tone = "more" if strength > 0 else "less"
    style = f"background: rgba(var(--{tone}), {0.6 * abs(strength):.2f})"
    return Cell(f"{value:.3f}", style=style, bold=bold)


def _pictures(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Pictures of the images with the highest, middle and lowest IoU, as base64.

    JPEG, for photographs as PNG would take several times the room.
    """
    extremes = run.ensemble.get("extremes") or {}
    for dataset, found in (extremes.get("datasets") or {}).items():
        path = run.folder / str(extremes.get("folder", "")) / str(found.get("file", ""))
        if path.is_file():
            buffer = io.BytesIO()
            with Image.open(path) as image:
                image.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
            yield dataset, base64.b64encode(buffer.getvalue()).decode()


def _warnings(run: RunRecord) -> Iterator[tuple[str, list[tuple[str, int]], int]]:
    """Title, warnings with their counts, and how many more, of each stage that has some."""
    for stage in run.stages:
        found = list(stage.training.warnings.items())
        if found:
            yield stage.title, found[:_WARNINGS], max(0, len(found) - _WARNINGS)

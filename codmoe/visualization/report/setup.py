"""What was run: configs, data, machine, time, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from codmoe.evaluation.tables import format_value
from codmoe.visualization.report.data import RunRecord, StageRecord, number
from codmoe.visualization.report.markup import Markup, heading, notes, paragraph, table, text

# Of a data set's config, what says nothing about which images it holds.
_UNTOLD = ("type", "pipeline", "cache", "datasets", "dataset", "_scope_", "max_share")
_COLUMNS = ("", "config", "epochs", "best", "images", "batch", "rate", "seed", "precision", "time")


def setup_section(run: RunRecord) -> Markup:
    """A row per stage, then model, data, machine and command."""
    rows = [_stage_row(stage) for stage in run.stages]
    empty = [i for i in range(2, len(_COLUMNS)) if all(row[i] == "-" for row in rows)]
    kept = [i for i in range(len(_COLUMNS)) if i not in empty]
    parts = [
        table([_COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows], left=2)
    ] if rows else []  # fmt: skip
    parts.append(_machine(run))
    details = [*_model(run), *_data(run)]
    if details:
        parts.append(table(["", ""], details, left=2))
    parts.append(_handover(run))
    command = _command(run)
    if command:
        parts += [heading("command"), Markup(f"<pre><code>{text(command)}</code></pre>")]
    hints = [
        "best: highest IoU of a validation, and its epoch, whose weights went on; batch: per "
        "process × processes; rate: base learning rate at its highest."
    ]
    if any(stage.training.resumed for stage in run.stages):
        hints.append("time of a resumed stage: since it was last resumed.")
    return Markup("".join(parts) + notes(hints))


def _stage_row(stage: StageRecord) -> list[str]:
    done, opening = stage.finished, stage.training.opening()
    cfg = stage.training.config() or {}
    batch = (cfg.get("train_dataloader") or {}).get("batch_size", "-")
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


def _machine(run: RunRecord) -> Markup:
    openings = [stage.training.opening() for stage in run.stages]
    machines = dict.fromkeys(
        f"{o['processes']} × {o['device']}, codmoe {o['codmoe']}, torch {o['torch']}, "
        f"Python {o['python']}"
        for o in openings
        if o
    )
    lines = [f"Trained on {'; '.join(machines)}."] if machines else []
    tests = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in stage.result["versions"].items())
        for stage in run.stages
        if isinstance(stage.result.get("versions"), Mapping)
    )
    if tests and not machines:
        lines.append(f"Tested with {'; '.join(tests)}.")
    if number(run.payload.get("seconds")) >= 0:
        whole = duration(number(run.payload["seconds"]))
        lines.append(f"The last call, with the tests, took {whole}.")
    return paragraph(" ".join(lines)) if lines else Markup()


def _model(run: RunRecord) -> list[list[str]]:
    cfg = next((c for s in reversed(run.stages) if (c := s.training.config())), None)
    model = (cfg or {}).get("model") or {}
    backbone = model.get("backbone")
    if isinstance(backbone, Mapping):
        backbone = backbone.get("name") or backbone.get("type")
    rows = [["backbone", str(backbone)]] if backbone else []
    if model.get("experts"):
        experts = [name for name, part in model["experts"].items() if part is not None]
        chosen = f", {model['top_k']} an image" if model.get("top_k") else ""
        rows.append(["experts", ", ".join(sorted(experts)) + chosen])
    weights = [str(path) for path in run.payload.get("weights") or ()]
    return [*rows, ["weights", ", ".join(weights)]] if weights else rows


def _data(run: RunRecord) -> list[list[str]]:
    rows = []
    for part, label in (("train", "trained on"), ("val", "validated on"), ("test", "tested on")):
        told: dict[str, list[str]] = {}
        for stage in run.stages:
            loader = (stage.training.config() or {}).get(f"{part}_dataloader") or {}
            dataset = loader.get("dataset")
            if dataset:
                told.setdefault(describe(dataset), []).append(stage.title.removeprefix("stage "))
        for line, numbers in told.items():
            several = f": stage {' and '.join(numbers)}" if len(told) > 1 else ""
            rows.append([label + several, line])
    return rows


def describe(dataset: Any) -> str:
    """A data set's config in a line: its type and what chooses its images."""
    if not isinstance(dataset, Mapping):
        return str(dataset)
    inner = dataset.get("datasets")
    own = [f"{k}={_plain(v)}" for k, v in dataset.items() if k not in _UNTOLD and v is not None]
    if dataset.get("type") == "TolerantDataset":
        return describe(dataset.get("dataset"))
    if isinstance(inner, Mapping):
        parts = [f"{name}: {describe(each)}" for name, each in inner.items() if each is not None]
        return "; ".join(parts + own)
    return f"{dataset.get('type', '')} ({', '.join(own)})" if own else str(dataset.get("type"))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    return str(value)


def _handover(run: RunRecord) -> Markup:
    """The experts on their own checkpoints and in the assembled model, before the first step."""
    rows = [
        [stage.title, name, *map(format_value, map(number, map(found.get, ("own", "assembled"))))]
        for stage in run.stages
        for name, found in (stage.assembly.get("experts") or {}).items()
        if isinstance(found, Mapping)
    ]
    if not rows:
        return Markup()
    head = ["", "expert", "IoU on its own checkpoint", "IoU in the assembled model"]
    title = heading("what each stage started from, on the validation set")
    return Markup(title + table(head, rows, left=2))


def _command(run: RunRecord) -> str:
    call = run.payload.get("call")
    if not isinstance(call, Mapping):
        return ""
    words = ["python", "tools/run_stages.py", *[stage.config for stage in run.stages]]
    if call.get("gpus", 1) != 1:
        words += ["--gpus", str(call["gpus"])]
    words += ["--work-dir", str(run.folder)]
    if call.get("data_root"):
        words += ["--data-root", str(call["data_root"])]
    if call.get("options"):
        words += ["--cfg-options", *map(str, call["options"])]
    return shlex.join(words)

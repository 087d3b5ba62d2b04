"""The headline table, what stage 3 did to the experts, and how the router uses them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from codmoe.evaluation.tables import format_value, ranks, result_rows, table_notes
from codmoe.visualization.report.data import RunRecord, number
from codmoe.visualization.report.markup import Markup, figures, heading, notes, table
from codmoe.visualization.report.plots import routing_curves

LABELS = dict(
    uniform="uniform mixture of stage 1",
    router="router, stage 2",
    ensemble="ensemble, stage 3",
    oracle="oracle of stage 1",
)


def result_section(run: RunRecord) -> Markup:
    """Data set × source × metric, and the experts before and after stage 3."""
    parts, hints = [], []
    for dataset, found in run.table.items():
        # Only what is there: an older run may lack a row.
        sources = [*run.experts(dataset), *[name for name in LABELS if name in found]]
        rows = result_rows(run.table, datasets=[dataset], sources=sources)
        rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
        metrics = list(rows[0])[3:]
        best = ranks(rows, metrics)
        body = [
            [
                LABELS.get(row["source"], f"{row['source']}, stage 1"),
                row["n"],
                *[_figure(row[key], best.get((index, key)) == 1) for key in metrics],
            ]
            for index, row in enumerate(rows)
        ]
        parts += [heading(dataset), table(["source", "n", *metrics], body)]
        hints = hints or table_notes(rows, metrics)
        parts.append(_before_and_after(run, dataset))
    return Markup("".join(parts) + notes(["bold: best of the column", *hints]))


def _figure(value: float, best: bool) -> Markup:
    shown = format_value(value)
    return Markup(f"<strong>{shown}</strong>" if best else shown)


def _before_and_after(run: RunRecord, dataset: str) -> Markup:
    after = (run.payload.get("ensemble_experts") or {}).get(dataset) or {}
    before = run.table[dataset]
    names = [n for n in (*run.experts(dataset), "uniform", "oracle") if n in after and n in before]
    if not names:
        return Markup()
    pairs = {n: (number(before[n].get("IoU")), number(after[n].get("IoU"))) for n in names}
    body = [
        ["IoU after stage 1", *[format_value(a) for a, _ in pairs.values()]],
        ["IoU after stage 3", *[format_value(b) for _, b in pairs.values()]],
        ["points", *[f"{100 * (b - a):+.1f}" for a, b in pairs.values()]],
    ]
    return Markup(
        heading(f"{dataset}: what stage 3 did to the experts") + table(["", *names], body)
    )


def routing_section(run: RunRecord) -> Markup:
    """Curves of the shares and of the mutual information, and the figures on the test images."""
    parts = []
    for stage in run.stages:
        plots = routing_curves(stage.training, run.expert_names)
        if plots:
            parts += [heading(f"{stage.title}: {stage.config}"), figures(plots)]
    numbers = {
        label: run.payload.get("routing", {}).get(key) or {}
        for key, label in (("router", "stage 2"), ("ensemble", "stage 3"))
    }
    numbers = {label: each for label, each in numbers.items() if each}
    if numbers:
        parts += [heading("on the test images, all data sets together"), _routing_table(numbers)]
    if not parts:
        return Markup()
    ceiling = math.log(max(len(run.expert_names), 1))
    hints = [
        "Mutual information H(mean p) − mean H(p), in nats: 0 for a router that ignores the image, "
        f"at most ln {len(run.expert_names)} = {ceiling:.3f}. In training it is that of one batch, "
        "with the router's noise; thin lines are training, lines with dots validation.",
        "share: mean weight in the mixture; chosen: images that have the expert in their top k; "
        "first choice right: it is a best expert of the image; regret: oracle minus mixture, "
        "negative where mixing beats every single expert.",
    ]
    return Markup("".join(parts) + notes(hints))


_QUALITY = dict(
    mutual_information="mutual information",
    top1_max_share="most popular first choice",
    top1_accuracy="first choice right",
    regret="regret, IoU",
)


def _routing_table(numbers: Mapping[str, Mapping[str, Any]]) -> Markup:
    columns = list(numbers)
    keys = dict.fromkeys(key for each in numbers.values() for key in each)
    shown = {
        key: f"{kind}: {key.removeprefix(start)}"
        for start, kind in (("share_", "share"), ("chosen_", "chosen"))
        for key in keys
        if key.startswith(start)
    }
    shown |= {key: label for key, label in _QUALITY.items() if key in keys}
    body = [[label, *_cells(numbers, columns, key)] for key, label in shown.items()]
    return table(["", *columns], body)


def _cells(numbers: Mapping[str, Mapping[str, Any]], columns: Sequence[str], key: str) -> list[str]:
    values = [number(numbers[column].get(key)) for column in columns]
    # Of a router that ignores the image four decimals would be zeros.
    small = key == "mutual_information"
    return [f"{v:.2g}" if small and math.isfinite(v) else format_value(v) for v in values]

"""What a reader should know before believing the figures."""

from __future__ import annotations

import math
from collections.abc import Iterator

from codmoe.visualization.report.data import RunRecord, number
from codmoe.visualization.report.differences import best_expert, difference, told
from codmoe.visualization.report.markup import Markup, heading, notes, text

# Below this share of its ceiling the mutual information is that of a router with one answer.
BLIND = 0.01
SMALL_SET = 100
_SHOWN = 20


def note_section(run: RunRecord) -> Markup:
    """Findings of this page in words, then the warnings of the logs."""
    parts = [notes(findings(run))]
    for stage in run.stages:
        warnings = stage.training.warnings()
        if warnings:
            parts.append(heading(f"warnings in the logs of {stage.title}"))
        for message, count in list(warnings.items())[:_SHOWN]:
            times = f" ({count} times)" if count > 1 else ""
            parts.append(Markup(f'<div class="warn">{text(message)}{times}</div>'))
        if len(warnings) > _SHOWN:
            parts.append(Markup(f"<p>and {len(warnings) - _SHOWN} more</p>"))
    return Markup("".join(parts))


def findings(run: RunRecord) -> Iterator[str]:
    """One sentence for each thing that limits what the run shows."""
    seeds = {o["seed"] for s in run.stages if (o := s.training.opening())}
    yield (
        f"One training with one seed{f' ({seeds.pop()})' if len(seeds) == 1 else ''}: how much "
        "another seed would differ is not known."
    )
    for stage in run.stages:
        done = stage.finished
        if not done:
            yield f"{stage.title} has no finished.json: it may not have run to its end."
        elif done.get("best_epoch") and done["best_epoch"] == done.get("epochs"):
            yield (f"{stage.title}: the last epoch was the best, so longer training may give more.")
    for key, title in (("router", "stage 2"), ("ensemble", "stage 3")):
        yield from _routing_findings(run, key, title)
    for dataset, rows in run.table.items():
        experts = run.experts(dataset)
        name, ensemble = best_expert(rows, experts), rows.get("ensemble")
        if ensemble and ensemble["n"] < SMALL_SET:
            yield f"{dataset} has {ensemble['n']} test images: small differences mean little."
        found = difference(ensemble, rows[name], ["IoU"]).get("IoU") if name and ensemble else None
        if found and not found.low > 0:
            yield (
                f"{dataset}: that the ensemble is better than the best expert of stage 1 ({name}) "
                f"is not shown ({told(found)})."
            )
        after = (run.payload.get("ensemble_experts") or {}).get(dataset, {}).get("uniform")
        found = difference(ensemble, after, ["IoU"]).get("IoU") if after and ensemble else None
        if found and not found.low > 0:
            yield (
                f"{dataset}: that the router's weights are better than equal weights for the same "
                f"experts is not shown ({told(found)})."
            )


def _routing_findings(run: RunRecord, key: str, title: str) -> Iterator[str]:
    numbers = (run.payload.get("routing") or {}).get(key) or {}
    experts = [name for name in run.expert_names if f"chosen_{name}" in numbers]
    information = number(numbers.get("mutual_information"))
    ceiling = math.log(len(experts)) if len(experts) > 1 else math.nan
    if information < BLIND * ceiling:
        yield (
            f"{title}: the router's probabilities are nearly the same for every image (mutual "
            f"information {information:.2g} of at most {ceiling:.2f} nats)."
        )
    if number(numbers.get("top1_max_share")) > 0.95:
        yield f"{title}: one expert is the first choice of more than 95 % of the images."
    rare = [name for name in experts if number(numbers[f"chosen_{name}"]) < 0.01]
    if rare:
        yield f"{title}: chosen for fewer than 1 % of the images: {', '.join(rare)}."

"""The tables of the study, of its result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codmoe.console import TextTable
from codmoe.evaluation.intervals import Interval, paired_intervals

DOMAINS = dict(CAMO=("CAMO",), DUTS=("DUTS",), polyps=("Kvasir", "CVC-ClinicDB"))
SPECIALISTS = dict(CAMO="camo", DUTS="duts", polyps="polyp")
OLD_GOAL, NEW_GOAL = 0.3, 1.0
"""Points that an old domain may lose in IoU, and the new one in mDice."""

Source = tuple[dict[str, Any], str]
"""A result and the name of one of its sources."""


def values(source: Source, domain: str, metric: str) -> np.ndarray:
    """Values per image in points, (n,); of ``domain`` "all" of all three."""
    result, name = source
    domains = DOMAINS if domain == "all" else [domain]
    sets = [dataset for each in domains for dataset in DOMAINS[each]]
    rows = [result["table"][dataset][name]["images"] for dataset in sets]
    return 100 * np.array([row[stem][metric] for row in rows for stem in sorted(row)], np.float64)


def difference(one: Source, other: Source, domain: str, metric: str) -> Interval:
    """Paired difference of two sources over the images of a domain, in points."""
    pair = (values(source, domain, metric)[:, None] for source in (one, other))
    return paired_intervals(*pair)[0]


def cost_of(result: dict[str, Any]) -> list[str]:
    """Minutes, and millions of parameters trained: of all trainings that a row is made of."""
    told = list(result["training"].values())
    seconds = [one["seconds"] for one in told]
    minutes = "–" if None in seconds else f"{sum(seconds) / 60:.1f}"
    return [minutes, " + ".join(f"{one['trained'] / 1e6:.1f}" for one in told)]


def figures(source: Source, columns: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{np.mean(values(source, domain, metric)):.2f}" for domain, metric in columns]


def growth(results: dict[str, dict[str, Any]]) -> list[TextTable]:
    """Before and after a mixture grew, and a model of the new domain alone."""
    before, after, alone = (results[row] for row in ("base_router", "grown", "alone"))
    mixture, expert = (after, "mixture"), (after, "polyp")
    columns = [(d, "IoU") for d in DOMAINS] + [("polyps", "mDice")]
    rows = [
        ["four experts, before", *figures((before, "mixture"), columns), *cost_of(before)],
        ["five experts, after", *figures(mixture, columns), *cost_of(after)],
        ["its new expert, after", *figures(expert, columns), "", ""],
        ["a model of polyps alone", *figures((alone, "mixture"), columns), *cost_of(alone)],
    ]
    heads = ["", *(f"{d} {m}" for d, m in columns), "minutes", "M trained"]
    kept = after["kept"]
    parts = ", ".join(kept["parts"])
    notes = [f"after: {kept['differ']} of {kept['tensors']} tensors of the old {parts} differ"]
    first = TextTable(heads, rows, title="A mixture grown by an expert for polyps", notes=notes)
    rows = []
    for told, one, other, domain, metric, goal in (
        ("before", mixture, (before, "mixture"), "CAMO", "IoU", OLD_GOAL),
        ("before", mixture, (before, "mixture"), "DUTS", "IoU", OLD_GOAL),
        ("before", mixture, (before, "mixture"), "polyps", "IoU", None),
        ("polyps alone", mixture, (alone, "mixture"), "polyps", "mDice", NEW_GOAL),
        ("polyps alone", expert, (alone, "mixture"), "polyps", "mDice", NEW_GOAL),
    ):
        found = difference(one, other, domain, metric)
        met = "yes" if goal is not None and found.difference >= -goal else "no"
        who = "after" if one is mixture else "new expert, after"
        cells = [f"{who} − {told}", f"{domain} {metric}", *interval(found)]
        rows.append([*cells, "" if goal is None else f"≥ −{goal}: {met}"])
    second = TextTable(["", "of", "points", "95 % over images", "goal"], rows, words=(0, 1))
    return [first, second, origins(before, after)]


def origins(before: dict[str, Any], after: dict[str, Any]) -> TextTable:
    """How much of a change on old domains is of images that the new expert takes part in."""
    rows = []
    for domain in ("CAMO", "DUTS"):
        sources = ((before, "mixture"), (after, "mixture"), (after, "polyp"))
        was, now, newcomer = (values(source, domain, "IoU") for source in sources)
        told = [after["with_newcomer"][dataset] for dataset in DOMAINS[domain]]
        there = np.array([one[stem] for one in told for stem in sorted(one)], bool)
        means = [
            f"{np.mean(each[there]):.1f}" if there.any() else "–" for each in (was, now, newcomer)
        ]
        parts = [f"{(now - was)[which].sum() / len(now):+.2f}" for which in (there, ~there)]
        rows.append(["after − before", domain, f"{there.sum()} of {len(now)}", *means, *parts])
    heads = ["", "of", "images with the new expert", "IoU there before", "after"]
    heads += ["of the new expert", "points from these", "from the others"]
    return TextTable(heads, rows, words=(0, 1))


def interval(found: Interval) -> list[str]:
    return [f"{found.difference:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}"]


def specialists(results: dict[str, dict[str, Any]]) -> list[TextTable]:
    """Experts of one domain each: router, every one alone, their mean, one model of everything."""
    mixture, everything = results["specialists"], results["everything"]
    columns = [(d, "IoU") for d in (*DOMAINS, "all")] + [("polyps", "mDice")]
    sources: dict[str, Source] = {
        **{f"specialist of {d}": (mixture, name) for d, name in SPECIALISTS.items()},
        "their mean": (mixture, "uniform"),
        "one model of everything": (everything, "mixture"),
    }
    router, oracle = (mixture, "mixture"), (mixture, "oracle")
    rows = [
        ["router, top-2", *figures(router, columns), *cost_of(mixture)],
        *([label, *figures(source, columns), "", ""] for label, source in sources.items()),
        # The oracle is of IoU: it has no other measure.
        ["best specialist of each image", *figures(oracle, columns[:-1]), "", "", ""],
    ]
    rows[5][-2:] = cost_of(everything)
    shares = mixture["routing_by_dataset"]
    weight = ", ".join(
        f"{dataset} {shares[dataset][f'share_{SPECIALISTS[domain]}']:.2f}"
        for domain, sets in DOMAINS.items()
        for dataset in sets
    )
    notes = [f"the router's mean weight on the specialist of the image's domain: {weight}"]
    heads = ["", *(f"{d} {m}" for d, m in columns), "minutes", "M trained"]
    first = TextTable(heads, rows, title="Specialists of one domain each", notes=notes)
    rows = []
    for label, source in sources.items():
        found = [difference(router, source, *column) for column in columns]
        cells = [f"{f.difference:+.2f} ({f.low:+.2f} to {f.high:+.2f})" for f in found]
        rows.append([f"router − {label}", *cells])
    heads = ["points (95 % over images)", *(f"{d} {m}" for d, m in columns)]
    return [first, TextTable(heads, rows)]


def print_tables(folder: Path) -> None:
    """Print the tables whose results lie in a folder, and write them to ``tables.md`` in it."""
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    tables = []
    for make, needed in (
        (growth, {"base_router", "grown", "alone"}),
        (specialists, {"specialists", "everything"}),
    ):
        if missing := sorted(needed - results.keys()):
            print(f"no table of {make.__name__}: {folder} has no result of {', '.join(missing)}")
            continue
        tables += make(results)
    for table in tables:
        table.print()
    (folder / "tables.md").write_text("\n".join(t.markdown() for t in tables), encoding="utf-8")

"""Tables of a study as one page: quality, differences, experts, winners by kind, and routing.

python -m projects.study.make_tables work_dirs/study/results --out study.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codmoe.evaluation.tables import format_value
from codmoe.files import replacing
from projects.study.plan import PRIORITY
from projects.study.results import experts_of, load_results
from projects.study.tables import (
    Results,
    by_dataset,
    difference_table,
    expert_table,
    markdown,
    overall,
    set_table,
    spread,
    summary_table,
)

# Whose experts are asked which of them wins where: the first that is there.
WINNERS_OF = ("stage3", "joint")
NOTES = """\
- mDice, mIoU: PraNet's, mean over 256 thresholds of the min-max normalised map; IoU at 0.5, not
  normalised; all per image, at the original resolution, averaged over all test images.
- ± is the standard deviation over training seeds. Intervals are 95 % percentile intervals of the
  paired bootstrap over test images, each image averaged over seeds; bold ones exclude 0. They speak
  of the choice of test images, not of the choice of seeds.
- "best expert" and "best separate expert" are chosen on the test images themselves, which favours
  them over what they are compared with, and for each measure by itself; the name is that in mDice.
- oracle: the expert with the best IoU of each image by the ground truth. gap closed: (mixture -
  best expert) / (oracle - best expert), in IoU.
"""


def report(results: Results, *, rows_first: Sequence[str] = (), samples: int = 10_000) -> str:
    """The whole page.

    Args:
        results: As :func:`~projects.study.results.load_results` returns them.
        rows_first: Rows, without their data set, in the order of the tables; others follow.
        samples: Draws of the bootstrap.
    """
    parts, first = [NOTES], list(rows_first)
    for dataset, rows in by_dataset(results).items():
        order = sorted(rows, key=lambda r: (first.index(r) if r in first else len(first), r))
        parts += [f"## {dataset}", summary_table(rows, order), "### By test set: mDice / mIoU"]
        parts += [set_table(rows, order), "### Differences"]
        parts += [difference_table(rows, samples=samples), "### Experts and oracle: IoU"]
        parts += [expert_table(rows, order), *_winners(rows), *_routing(rows, order)]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def winners_by_kind(seeds: Mapping[int, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of (test set, attribute, bin, images, IoU of each expert, best), means over seeds."""
    first = next(iter(seeds.values()))
    experts = list(experts_of(first))
    cells = []
    for name, columns in first["images"].items():
        ious = [
            float(np.mean([overall(r, e, "IoU", name) for r in seeds.values()])) for e in experts
        ]
        cells.append(_winner_cells(name, "all", "", len(columns["stems"]), ious, experts))
        for index, row in enumerate(first["breakdown"].get(name, [])):
            same = [run["breakdown"][name][index] for run in seeds.values()]
            ious = [
                float(np.mean([np.nan if r["IoU"][e] is None else r["IoU"][e] for r in same]))
                for e in experts
            ]
            cells.append(_winner_cells(name, row["attribute"], row["bin"], row["n"], ious, experts))
    return cells


def _winner_cells(
    name: str, attribute: str, kind: str, n: int, ious: Sequence[float], experts: Sequence[str]
) -> list[str]:
    shown = [round(float(value), 4) for value in ious]
    known = [value for value in shown if np.isfinite(value)]
    best = [e for e, v in zip(experts, shown, strict=True) if known and v == max(known)]
    return [name, attribute, kind, str(n), *map(format_value, shown), " = ".join(best) or "-"]


def _winners(rows: Results) -> list[str]:
    row = next((r for r in WINNERS_OF if r in rows), None)
    if row is None:
        return []
    experts = experts_of(next(iter(rows[row].values())))
    headers = ["test set", "attribute", "bin", "n", *experts, "best expert"]
    title = f"### Which expert of {row} wins where: IoU"
    return [title, markdown(headers, winners_by_kind(rows[row]))]


def _routing(rows: Results, order: Sequence[str]) -> list[str]:
    """Share of each expert's weight and mutual information, on all images and on each set."""
    chosen = [r for r in order if r.startswith(("router", "stage3", "static"))]
    if not chosen:
        return []
    experts = list(experts_of(next(iter(rows[chosen[0]].values()))))
    cells = []
    for row in chosen:
        runs = list(rows[row].values())
        sets = {"all": [run["routing"] for run in runs]}
        for name in runs[0].get("routing_by_dataset") or {}:
            sets[name] = [run["routing_by_dataset"][name] for run in runs]
        for name, found in sets.items():
            keys = [*(f"share_{e}" for e in experts), "mutual_information", "top1_accuracy"]
            texts = [spread([f[k] for f in found]) if k in found[0] else "-" for k in keys]
            cells.append([row, name, *texts])
    headers = ["row", "test set", *experts, "mutual information (nats)", "first choice is best"]
    title = "### Routing: mean weight of each expert"
    return [title, markdown(headers, cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="folder of the results of projects.study.run")
    parser.add_argument("--out", help="Markdown file; without it the tables are printed")
    parser.add_argument("--samples", type=int, default=10_000, help="draws of the bootstrap")
    args = parser.parse_args()
    try:
        text = report(load_results(args.results), rows_first=PRIORITY, samples=args.samples)
        if not args.out:
            print(text)
            return
        with replacing(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"tables: {args.out}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

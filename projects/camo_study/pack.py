"""Keeps of result files what intervals need, small enough for git:
python projects/camo_study/pack.py results/*.json --out projects/camo_study/results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("IoU", "Sm", "wFm", "MAE")
DROPPED = ("attributes", "breakdown", "routing_weights", "engine", "seconds")


def packed(result: dict[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """The result without curves, with per-image values of some measures to five digits.

    Means of several maps that were scored by IoU alone, dozens of them, come under ``means``,
    without images.
    """
    if "images" in result:
        return _row(result, metrics)
    table: dict[str, dict] = {}
    means: dict[str, float] = {}
    for dataset, sources in result["table"].items():
        kept = {s for s, row in sources.items() if "Sm" in row or "+" not in s}
        table[dataset] = {s: _row(sources[s], metrics) for s in sources if s in kept}
        means |= {s: round(row["IoU"], 5) for s, row in sources.items() if s not in kept}
    packed = {k: v for k, v in result.items() if k not in DROPPED} | dict(table=table)
    return packed | dict(means=means) if means else packed


def _row(row: dict[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    kept = {k: v for k, v in row.items() if k not in ("images", "curves")}
    images = {
        stem: {m: round(image[m], 5) for m in metrics if m in image}
        for stem, image in row["images"].items()
    }
    return kept | dict(images=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--metrics", nargs="+", default=METRICS, help="per-image values to keep")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for file in map(Path, args.results):
        text = json.dumps(packed(json.loads(file.read_text()), args.metrics), separators=(",", ":"))
        (out / file.name).write_text(text + "\n")


if __name__ == "__main__":
    main()

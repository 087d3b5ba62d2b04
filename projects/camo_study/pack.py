"""Keeps of result files what intervals need, small enough for git:
python projects/camo_study/pack.py results/*.json --out projects/camo_study/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

METRICS = ("IoU", "Sm", "wFm", "MAE")
DROPPED = ("attributes", "breakdown", "routing_weights", "engine", "seconds")


def packed(result: dict[str, Any]) -> dict[str, Any]:
    """The result without curves, with per-image values of four measures to five digits."""
    table = {
        dataset: {
            source: {
                **{k: v for k, v in row.items() if k not in ("images", "curves")},
                "images": {
                    stem: {m: round(image[m], 5) for m in METRICS if m in image}
                    for stem, image in row["images"].items()
                },
            }
            for source, row in sources.items()
        }
        for dataset, sources in result["table"].items()
    }
    return {k: v for k, v in result.items() if k not in DROPPED} | dict(table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for file in map(Path, args.results):
        text = json.dumps(packed(json.loads(file.read_text())), separators=(",", ":"))
        (out / file.name).write_text(text + "\n")


if __name__ == "__main__":
    main()

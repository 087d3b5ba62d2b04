"""Small results of a study's runs: what tables need of a test, without curves."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codmoe.evaluation.conventions import COMBINED

METRICS = ("mDice", "mIoU", "IoU", "Sm", "wFm", "MAE")
# Of each expert alone; the rest is asked of mixtures only.
EXPERT_METRICS = ("mDice", "mIoU", "IoU")
# What files.keep_old calls a result that was replaced.
_DATED = re.compile(r"\.\d{8}-\d{6}(-\d+)?$")


def condensed(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ``tools/test.py --experts --json`` payload that the study keeps.

    Values per image stay, as columns of four decimals beside one list of stems, and curves go:
    about 100 kB for four experts on 361 images.

    Returns:
        ``images[dataset] = {"stems": [...], source: {metric: [...]}}``, ``breakdown``, ``routing``,
        ``routing_by_dataset``, ``checkpoint``. Of a lone expert only the mixture is kept, for all
        others are the same.
    """
    images = {}
    for dataset, rows in payload["table"].items():
        stems = list(rows["mixture"]["images"])
        alone = len(set(rows) - set(COMBINED)) < 2
        columns: dict[str, Any] = {"stems": stems}
        for source, row in rows.items():
            if alone and source != "mixture":
                continue
            keys = METRICS if source in COMBINED else EXPERT_METRICS
            columns[source] = {
                key: [_rounded(row["images"][stem].get(key)) for stem in stems] for key in keys
            }
        images[dataset] = columns
    kept = {key: payload.get(key) for key in ("checkpoint", "routing", "routing_by_dataset")}
    breakdown = {
        dataset: [dict(row, IoU={k: _rounded(v) for k, v in row["IoU"].items()}) for row in rows]
        for dataset, rows in (payload.get("breakdown") or {}).items()
    }
    return dict(kept, images=images, breakdown=breakdown)


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 4)


def to_text(result: Mapping[str, Any]) -> str:
    """As JSON on as few bytes as it takes."""
    return json.dumps(result, separators=(",", ":"), ensure_ascii=False)


def load_results(folder: str | os.PathLike) -> dict[str, dict[int, dict[str, Any]]]:
    """All results of a folder as ``{row: {seed: result}}``, without those that were replaced.

    Raises:
        FileNotFoundError: No such folder, or it holds no result.
        ValueError: A file that is called like one is none.
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.glob("*_seed*.json") if not _DATED.search(p.stem))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no results (<row>_seed<k>.json); make them with projects.study.run"
        )
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in paths:
        row, _, seed = path.stem.rpartition("_seed")
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(result["images"], dict) or not seed.isdigit():
                raise KeyError("images")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no result of a study ({error!r}); give the --out of run.py"
            ) from None
        found.setdefault(row, {})[int(seed)] = result
    return found


def experts_of(result: Mapping[str, Any]) -> Sequence[str]:
    """Names of the experts scored in a result; empty for a lone expert."""
    first = next(iter(result["images"].values()))
    return [source for source in first if source not in (*COMBINED, "stems")]

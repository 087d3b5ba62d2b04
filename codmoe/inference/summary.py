"""A table of the parameters of a model and the operations of one image, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from codmoe.console import TextTable
from codmoe.engine.config import load_config, size_of
from codmoe.evaluation.cost import summarise
from codmoe.files import save_json
from codmoe.inference.zoo import create_model
from codmoe.messages import note
from codmoe.models.moe import ModelLevelMoE


def summary_table(summary: dict[str, Any]) -> TextTable:
    """A summary for the terminal: millions of parameters, billions of operations."""
    size, top_k = summary["size"], summary["top_k"]
    rows: list[list[str] | None] = []
    for row in summary["parts"]:
        parameters = f"{row['parameters'] / 1e6:.2f}" if row["parameters"] else "-"
        rows.append([row["part"], parameters, f"{row['flops'] / 1e9:.1f}"])
    total = summary["total"]
    figures = [f"{total['parameters'] / 1e6:.2f}", f"{total['flops'] / 1e9:.1f}"]
    rows += [None, ["total, every expert run", *figures]]
    active, route = summary["active_parameters"], summary["route_flops"]
    for which in ("min", "max", "mean"):
        parameters = f"{active[which] / 1e6:.2f}" + _who(active, which)
        flops = f"{route[which] / 1e9:.1f}" + _who(route, which)
        rows.append([f"top-{top_k} route, {which}", parameters, flops])
    title = f"one image of {size} × {size}; {summary['unit']}"
    heads = ["part", "parameters (M)", "GFLOPs"]
    return TextTable(heads, rows, title=title, notes=summary["notes"])


def _who(values: dict[str, Any], which: str) -> str:
    names = values.get(f"{which}_experts")
    return f" ({' + '.join(names)})" if names else ""


def side_of(model: ModelLevelMoE, cfg: Mapping[str, Any] | None) -> int:
    """Side of a square at which a config tests its model: the longer one, if they differ."""
    divisor = model.backbone.size_divisor
    return -(-max(size_of(cfg)) // divisor) * divisor


def report(
    config: str | Path, size: int | None = None, json_file: str | Path | None = None
) -> dict:
    """Builds a config's model without any weights, measures it on an image of ``size`` pixels a
    side, by default that at which the config tests, prints a table and writes JSON.

    Raises:
        FileNotFoundError: No such config.
        ValueError: The config has faults, or ``size`` does not fit.
    """
    cfg = load_config(config)
    note(f"building {cfg.config_file} (no weights are read or downloaded)")
    model = create_model(cfg.config_file)
    summary = summarise(model, side_of(model, cfg) if size is None else size)
    summary = dict(config=str(config), torch=torch.__version__, **summary)
    summary_table(summary).print()
    if json_file is not None:
        print(f"wrote {save_json(json_file, summary)}")
    return summary

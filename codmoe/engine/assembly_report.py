"""The table and the sentences about an assembled model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

STALE = "weights of backbone"
REFIT = {
    "one file": "configs/experts/refit.py",
    "one backbone": "configs/experts/refit_one_backbone.py",
    "soup": "configs/experts/refit_soup.py",
}


def print_assembly(payload: Mapping[str, Any], logger, path: Path) -> None:
    """Log the payload of ``assembly.json`` as a table, on the terminal and in the log file."""
    table = Table(
        title=f"experts before the first step, validation IoU over {payload['images']} images",
        title_justify="left",
    )
    experts = payload["experts"]
    before = any(expert["before"] for expert in experts.values())
    columns = ["expert", *(["before that run"] if before else []), "own checkpoint"]
    for column in (*columns, "IoU there", "assembled", "drop", ""):
        number = column in ("IoU there", "assembled", "drop")
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for name, expert in experts.items():
        figures = (f"{expert[key]:.4f}" for key in ("own", "assembled"))
        row = [expert["checkpoint"], *figures, f"{expert['drop']:+.4f}", _note(expert)]
        row = [name, *([_before(expert)] if before else []), *row]
        table.add_row(*map(escape, row), style=None if expert["passed"] else "red")
    text = io.StringIO()
    console = Console(file=text, width=10_000)
    console.print(table)
    lines = "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())
    backbone = ", ".join(payload["backbone"]) or "not loaded"
    kind = "average of " if len(payload["backbone"]) > 1 else ""
    logger.info(f"assembled ({payload['policy']}), backbone: {kind}{backbone}\n{lines}\n{path}")


def _before(expert: Mapping[str, Any]) -> str:
    start = expert["before"]
    return f"{start['IoU']:.4f} {Path(start['checkpoint']).name}" if start else "-"


def _note(expert: Mapping[str, Any]) -> str:
    if expert["measured_once"]:
        note = "measured once: bit-identical to its checkpoint"
        known = expert["config_in_checkpoint"]
        return note if known else f"{note}, which holds no config"
    return "differs: " + ", ".join(expert["differs"])


def failure(payload: Mapping[str, Any], path: Path) -> str:
    """What is wrong with an assembled model, expert by expert, and what would be right."""
    backbone = payload["backbone"]
    here = "the backbone here was not loaded from any run"
    if len(backbone) == 1:
        here = f"the backbone here is that of {backbone[0]}"
    elif backbone:
        here = f"the backbone here is the average of {', '.join(backbone)}"
    lines = [
        f"expert {name!r} has IoU {expert['own']:.4f} on its own checkpoint and "
        f"{expert['assembled']:.4f} in the assembled model, a drop of {expert['drop']:.4f} where "
        f"assembly.max_drop={payload['max_drop']} is allowed: {_cause(name, expert, here)}"
        for name, expert in payload["experts"].items()
        if not expert["passed"]
    ]
    failed = [expert for expert in payload["experts"].values() if not expert["passed"]]
    stale = any(STALE in expert["differs"] for expert in failed)
    fix = f" {_fix(payload)}" if stale else ""
    return "\n".join([*lines, f"No step was made.{fix} The table: {path}"])


def _fix(payload: Mapping[str, Any]) -> str:
    if not payload["backbone"]:
        one_file = payload["policy"] == "one file"
        key = "parts=('backbone', 'experts')" if one_file else "backbone='FILE.pth'"
        return f"Load the backbone that belongs to the heads: init_from.{key}."
    return (
        "Start from the joint run (init_from=dict(file='experts_joint_best.pth', parts=('backbone',"
        " 'experts'))), or refit the heads on this backbone first "
        f"({REFIT[payload['policy']]}) and start from what that leaves."
    )


def _cause(name: str, expert: Mapping[str, Any], here: str) -> str:
    by = expert["trained_by"]
    run = [str(by["stage"])] if "stage" in by else []
    run += [str(by["config_file"])] if by.get("config_file") else []
    run += [f"epoch {by['epoch']}"] if "epoch" in by else []
    run += [f"run {str(by['run_id'])[:8]}"] if "run_id" in by else []
    trained = expert["checkpoint"] + (f" ({', '.join(run)})" if run else "")
    if STALE in expert["differs"]:
        return f"its head was trained on the backbone of {trained}, and {here}"
    return (
        f"its head and backbone are those of {trained}, but the {', '.join(expert['differs'])} "
        "differs here; make both configs agree"
    )

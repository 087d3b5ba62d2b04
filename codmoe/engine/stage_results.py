"""What run_stages leaves: one table of all stages, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codmoe.evaluation.breakdown_tables import print_breakdown
from codmoe.evaluation.tables import print_table, result_rows, save_json, to_markdown
from codmoe.files import replacing
from codmoe.visualization.report import write_report

if TYPE_CHECKING:
    from codmoe.engine.stages import Stage


def write_results(
    stages: Sequence[Stage],
    results: Sequence[Mapping[str, Any]],
    folder: Path,
    seconds: float,
    call: Mapping[str, Any],
) -> dict[str, Any]:
    """Print the table of all stages and write it as JSON and Markdown, then the report.

    Args:
        stages: Stage 1 (one or several runs), 2 and 3.
        results: Test results of stage 2 and 3.
        folder: Where the files go.
        seconds: What this call took.
        call: Its further arguments, kept so that a report can say them.

    Returns:
        The payload of ``<folder>/table.json``.
    """
    router, ensemble = results
    table = {}
    for dataset, rows in router["table"].items():
        experts = {k: v for k, v in rows.items() if k not in ("mixture", "uniform", "oracle")}
        table[dataset] = dict(
            experts,
            uniform=rows["uniform"],
            router=rows["mixture"],
            oracle=rows["oracle"],
            ensemble=ensemble["table"][dataset]["mixture"],
        )
    rows = result_rows(table)
    print_table(rows, title="stage 1 experts, their mixtures (stage 2) and the ensemble (stage 3)")
    by_kind = {
        name: _print_kinds(name, result)
        for name, result in zip(("stage 2", "stage 3"), results, strict=True)
    }
    payload = dict(
        configs=[stage.name for stage in stages],
        weights=[str(stage.weights) for stage in stages],
        call=dict(call),
        seconds=round(seconds, 1),
        table=table,
        routing=dict(router=router["routing"], ensemble=ensemble["routing"]),
        ensemble_experts=ensemble["table"],
        by_kind=by_kind,
    )
    save_json(folder / "table.json", payload)
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(to_markdown(rows) + "\n")
    print(f"table: {folder / 'table.md'}")
    picture = folder / f"{stages[-1].cfg.default_hooks.best.name}.png"
    if picture.is_file():
        print(f"pictures: {picture}")
    _write_report(folder)
    return payload


def _write_report(folder: Path) -> None:
    """The page is drawn from what lies in the folder by now: hours of training must not end in an
    error of a plot.
    """
    try:
        print(f"report: {write_report(folder)}")
    except Exception as error:
        again = f"python tools/analysis/report.py {shlex.quote(str(folder))}"
        print(f"no report ({type(error).__name__}: {error}); once mended: {again}")


def _print_kinds(stage: str, result: Mapping[str, Any]) -> dict[str, list[dict]]:
    """Print and return the IoU of every expert on each kind of image, where images have kinds."""
    found = {}
    for dataset, rows in result.get("breakdown", {}).items():
        kinds = [row for row in rows if row["attribute"] == "kind"]
        if kinds:
            found[dataset] = kinds
            print_breakdown(kinds, title=f"{dataset} after {stage}: IoU by kind of image")
    return found

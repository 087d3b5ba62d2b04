"""The doctor's report on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codmoe.datasets.doctor import Report
from codmoe.datasets.doctor_checks import Finding

SHOWN = 3
COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_report(report: Report, console: Console | None = None) -> None:
    """The sets and, below them, every finding with its first files and what to do."""
    if console is None:
        console = Console()
        if not console.is_terminal:  # a log file, for which rich assumes 80 columns
            console.width = 120
    sets = Table(title=f"{report.root}: {report.layout}", title_justify="left")
    for name in ("set", "images", "protocol", "left out", "folder of images"):
        right = name in ("images", "protocol", "left out")
        sets.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in report.sets:
        expected, images = row["expected"], row["images"]
        colour = "" if expected in (None, images) else "[red]"
        sets.add_row(
            escape(f"{row['name']} {row['role']}".strip()),
            f"{colour}{images:,}",
            f"{expected:,}" if expected else "-",
            f"{row['left_out']:,}" if row["left_out"] else "",
            escape(row["image_dir"]),
        )
    console.print(sets)
    if report.findings:
        table = Table(show_lines=True, expand=True)
        table.add_column("", no_wrap=True)
        table.add_column("found", overflow="fold", ratio=2)
        table.add_column("what to do", ratio=1)
        for finding in report.findings:
            level = f"[{COLOURS[finding.level]}]{finding.level}[/]"
            table.add_row(level, _found(finding, report.root), escape(finding.advice))
        console.print(table)
    counts = {level: sum(f.level == level for f in report.findings) for level in COLOURS}
    kinds = ", ".join(
        f"{count} kind{'s' * (count != 1)} of {level}" for level, count in counts.items()
    )
    speed = report.images / max(report.seconds, 0.1)
    console.print(
        f"{report.images:,} images in {report.seconds:.0f} s ({speed:.0f} a second): {kinds}. "
        + ("Mend the errors before training." if report.errors else "Ready to train on.")
    )


def _found(finding: Finding, root: str) -> str:
    rows = [_few([_relative(path, root) for path in row]) for row in finding.files[:SHOWN]]
    more = len(finding.files) - SHOWN
    if more > 0:
        rows.append(f"and {more:,} more")
    count = f"{len(finding.files):,}"
    if len(finding.files[0]) > 1:
        count += " group of" if len(finding.files) == 1 else " groups of"
    head = (
        f"{escape(finding.where)}: [bold]{count} {escape(finding.check)}[/], {escape(finding.what)}"
    )
    return "\n".join([head, *(f"[dim]{escape(row)}[/]" for row in rows)])


def _few(paths: list[str]) -> str:
    rest = [f"{len(paths) - SHOWN} more"] if len(paths) > SHOWN else []
    return "  =  ".join([*paths[:SHOWN], *rest])


def _relative(path: str, root: str) -> str:
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path

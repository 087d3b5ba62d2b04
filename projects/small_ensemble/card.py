"""Writes the measured numbers into the model card, from the result files that hold them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codmoe.console import TextTable
from codmoe.evaluation.compare import load_methods
from codmoe.evaluation.tables import format_value, result_rows, result_table
from codmoe.files import save_text

BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"
METRICS = ("IoU", "Dice", "Sm", "wFm", "MAE")


def fill_card(card: str | Path, result: str | Path, zero_shot: Sequence[str | Path] = ()) -> None:
    """Replace what stands between the card's two marks; the earlier card is kept.

    Args:
        card: Markdown file with the marks ``<!-- numbers -->`` and ``<!-- end of numbers -->``.
        result: JSON of ``tools/test.py --experts`` on the held-out images.
        zero_shot: JSONs of ``tools/eval_maps.py`` on images of other kinds.

    Raises:
        FileNotFoundError: One of the files does not exist.
        ValueError: The card lacks a mark, or a file holds no results.
    """
    card = Path(card)
    text = _read(card)
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{card} must hold the marks {BEGIN!r} and {END!r} once each")
    held_out = _load(result)
    others = load_methods(zero_shot) if zero_shot else []
    parts = ["### Held-out images", _sources(held_out), "IoU of the ensemble by kind of image:"]
    parts.append(_kinds(held_out))
    if others:
        parts.append("### Real photographs, without training on any")
        tables = {name: {"ensemble": row} for other in others for name, row in other.rows.items()}
        parts.append(result_table(result_rows(tables, metrics=METRICS)).markdown())
    head, rest = text.split(BEGIN)
    filled = head + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + rest.split(END)[1]
    save_text(card, filled)


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return path.read_text(encoding="utf-8")


def _load(path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(Path(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or not found.get("table"):
        raise ValueError(f"{path} holds no table; give what tools/test.py --json wrote")
    return found


def _sources(result: Mapping[str, Any]) -> str:
    """IoU, one row a source and one column a data set."""
    table = result["table"]
    rows = [[f"{name} ({next(iter(rows.values()))['n']})" for name, rows in table.items()]]
    sources = list(next(iter(table.values())))
    order = ["mixture", *(s for s in sources if s != "mixture")]
    shown = [[format_value(table[name][source]["IoU"]) for name in table] for source in order]
    return _markdown("IoU", rows[0], dict(zip(order, shown, strict=True)))


def _kinds(result: Mapping[str, Any]) -> str:
    sets = list(result.get("breakdown") or {})
    found: dict[str, dict[str, str]] = {}
    for name in sets:
        for row in result["breakdown"][name]:
            if row["attribute"] == "kind":
                found.setdefault(row["bin"], {})[name] = format_value(row["IoU"]["mixture"])
    if not found:
        raise ValueError("the result file holds no kinds of images; run tools/test.py --experts")
    # A set may lack a kind.
    cells = {kind: [each.get(name, "-") for name in sets] for kind, each in found.items()}
    return _markdown("kind", sets, cells)


def _markdown(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    cells = [[name, *values] for name, values in rows.items()]
    return TextTable([corner, *columns], cells).markdown().rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="markdown with <!-- numbers --> and <!-- end of numbers -->")
    parser.add_argument("result", help="JSON of tools/test.py --experts")
    parser.add_argument("--zero-shot", nargs="+", default=[], help="JSONs of tools/eval_maps.py")
    args = parser.parse_args()
    try:
        fill_card(args.card, args.result, args.zero_shot)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"filled {args.card}")


if __name__ == "__main__":
    main()

"""Writes the measured numbers into the model card, from the file that ``run.py finish`` left."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codmoe.console import TextTable
from codmoe.evaluation.tables import format_value
from codmoe.files import save_text

BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"
OPEN = "CC BY, CC BY-SA; kept out of training and choice"
MADE = "made by this project's code; other seeds than training's"
RESEARCH = "research only; for measuring"
TERMS = dict(
    Photos=OPEN,
    Cutouts="objects of the former laid into each other",
    Textures="CC BY, CC BY-SA, other photographs; objects of their own texture",
    Hidden=MADE,
    Faint=MADE,
    Plain=MADE,
    CAMO=RESEARCH,
    DUTS=RESEARCH,
    Kvasir=RESEARCH,
    ClinicDB=RESEARCH,
)


def fill_card(card: str | Path, measured: str | Path) -> None:
    """Replace what stands between the card's two marks; the earlier card is kept.

    Args:
        card: Markdown file with the marks ``<!-- numbers -->`` and ``<!-- end of numbers -->``.
        measured: ``measured.json``.

    Raises:
        FileNotFoundError: One of the files does not exist.
        ValueError: The card lacks a mark, or the file holds no figures.
    """
    card = Path(card)
    text = _read(card)
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{card} must hold the marks {BEGIN!r} and {END!r} once each")
    result = _load(measured)
    parts = [
        _quality(result),
        _sources(result["after"]["sets"]),
        "### The router, at home and elsewhere",
        _routing(result["after"]["sets"]),
        _choice(result["choice"]),
        "### Size and time",
        _cost(result),
    ]
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
    if not isinstance(found, dict) or not (found.get("after") or {}).get("sets"):
        raise ValueError(f"{path} holds no figures; give the measured.json of run.py finish")
    return found


def _best(figures: Mapping[str, Any]) -> tuple[str, float]:
    experts = {name: iou for name, iou in figures["sources"].items() if name != "uniform"}
    name = max(experts, key=lambda key: experts[key])
    return name, experts[name]


def _quality(result: Mapping[str, Any]) -> str:
    before = result.get("before", {}).get("sets", {})
    rows = []
    for name, f in result["after"]["sets"].items():
        earlier = format_value(before[name]["IoU"]) if name in before else "-"
        threshold, at_best = f["best_threshold"]
        values = [f["IoU"], f["Sm"], f["MAE"], f["ECE"], at_best]
        shown = [format_value(value) for value in values]
        best = f"{shown[-1]} at {threshold:g}"
        rows.append([f"{name} ({f['n']})", earlier, *shown[:-1], best, TERMS.get(name, "-")])
    columns = ["images", "IoU before", "IoU", "Sm", "MAE", "ECE", "IoU, best threshold", "terms"]
    return _markdown(columns, rows)


def _sources(sets: Mapping[str, Any]) -> str:
    """IoU of the mixture, the plain mean and each expert, one column a data set."""
    names = list(next(iter(sets.values()))["sources"])
    rows = [["mixture", *(format_value(f["IoU"]) for f in sets.values())]]
    rows += [[name, *(format_value(f["sources"][name]) for f in sets.values())] for name in names]
    rows.append(["best of each image", *(format_value(f["oracle"]) for f in sets.values())])
    return _markdown(["IoU", *sets], rows)


def _routing(sets: Mapping[str, Any]) -> str:
    names = list(next(iter(sets.values()))["weights"])
    rows = []
    for name, f in sets.items():
        best, iou = _best(f)
        against = [f"{f['IoU'] - f['sources']['uniform']:+.4f}", f"{f['IoU'] - iou:+.4f} ({best})"]
        far = "-" if f["far"] is None else f"{f['far']:.0%}"
        shares = [f"{f['weights'][each]:.2f}" for each in names]
        rows.append([name, *shares, f"{f['entropy']:.2f}", far, *against])
    columns = ["images", *names, "entropy", "unlike training", "to the mean", "to the best expert"]
    return _markdown(columns, rows)


def _choice(choice: Mapping[str, Any]) -> str:
    off, home = (choice["tried"][key] for key in ("off_domain", "at_home"))
    rows = [[name, format_value(iou), "-"] for name, iou in off.items()]
    rows += [[name, "-", format_value(iou)] for name, iou in home.items()]
    told = (
        f"Chosen on validation: fallback {choice['fallback']:g}, by a router that was trained "
        f"without photographs and met them then ({choice['tried']['off_domain_far']:.0%} of them "
        f"unlike its training); the best {choice['top_k']} experts of each image, their logits "
        f"divided by {choice['routing']:g} ('at' below); temperature "
        f"{choice['temperature']:.3f} and offset {choice['offset']:+.3f}; masks are cut at "
        f"{choice['threshold']:g}. Figures above are at 0.5."
    )
    return f"{told}\n\n" + _markdown(["IoU", "photographs, unseen", "all of validation"], rows)


def _cost(result: Mapping[str, Any]) -> str:
    rows = []
    for name in ("before", "after"):
        if name in result:
            f = result[name]
            million, mega = f["parameters"] / 1e6, f["bytes"] / 1e6
            shown = [f"{million:.1f} M", f"{mega:.1f} MB", f"{f['size']} px", f"{f['ms']:.0f} ms"]
            rows.append([name, *shown])
    rounding = result["rounding"]
    told = (
        f"Rounding to 8 bits changes {rounding['mask']:.2%} of a mask on 20 photographs (1 − IoU), "
        f"and a probability by {rounding['change']:.4f} on the worst of them. Time: CPU time of an "
        "image on one thread; two idle cores take half of it at best."
    )
    return _markdown(["weights", "numbers", "file", "images", "an image"], rows) + f"\n\n{told}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return TextTable(list(columns), [list(row) for row in rows]).markdown().rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="markdown with <!-- numbers --> and <!-- end of numbers -->")
    parser.add_argument("measured", help="measured.json of run.py finish")
    args = parser.parse_args()
    try:
        fill_card(args.card, args.measured)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"filled {args.card}")


if __name__ == "__main__":
    main()

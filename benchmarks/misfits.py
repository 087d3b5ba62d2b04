"""Rates of the doctor's search for masks of other images: python -m benchmarks.misfits ROOT...

Each ROOT holds `images` and `masks`. Every mask is judged at its own image, and at the next one of
the set, brought to that one's size. With --json FILE for the numbers.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from codmoe.cli import main
from codmoe.commands.options import option, whole
from codmoe.console import TextTable
from codmoe.datasets.doctor.fitting import UNFIT, fit
from codmoe.datasets.layouts import find_pairs
from codmoe.datasets.reading import read_image, read_mask
from codmoe.files import save_json

OPTIONS = (
    option("roots", nargs="+", metavar="ROOT", help="folders that hold images and masks"),
    option("--count", type=whole(2), default=250, help="pairs of each, evenly spread (250)"),
    option("--json", help="file for the numbers"),
)


def rates(root: Path, count: int) -> dict[str, float]:
    """Number of pairs, and the shares of right and of wrong masks that are named."""
    pairs = find_pairs(root / "images", root / "masks")
    places = np.unique(np.linspace(0, len(pairs) - 1, count).astype(int))
    images = [read_image(str(pairs[place].image)) for place in places]
    masks = [read_mask(str(pairs[place].mask)).pixels for place in places]
    right = [fit(image, mask) < UNFIT for image, mask in zip(images, masks, strict=True)]
    wrong = []
    for image, mask in zip(images, [*masks[1:], masks[0]], strict=True):
        size = image.shape[1::-1]
        wrong.append(fit(image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)) < UNFIT)
    return dict(pairs=len(places), right=float(np.mean(right)), wrong=float(np.mean(wrong)))


def run(args) -> None:
    found = {root: rates(Path(root), args.count) for root in args.roots}
    rows = [
        (root, str(row["pairs"]), f"{row['right']:.3f}", f"{row['wrong']:.3f}")
        for root, row in found.items()
    ]
    TextTable(["set", "pairs", "right masks named", "of other images named"], rows).print()
    if args.json:
        print(f"json: {save_json(args.json, found)}")


if __name__ == "__main__":
    main(run, *OPTIONS, description=__doc__)

"""Rates of the doctor's search for copies: python -m benchmarks.copies --train DIR... --test DIR...

Every test image is altered in each of several ways and looked for among the test images, as if it
lay in the training set; then each training image is, as it is. With --json FILE for the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

from codmoe.cli import main
from codmoe.commands.options import option
from codmoe.console import TextTable
from codmoe.datasets.doctor.similarity import copies, sketch
from codmoe.datasets.layouts import image_files
from codmoe.datasets.reading import read_image
from codmoe.files import save_json

OPTIONS = (
    option("--train", nargs="+", required=True, help="folders of images that no test set holds"),
    option("--test", nargs="+", required=True, help="folders of images to alter and to find"),
    option("--json", help="file for the numbers"),
)


def jpeg(image: np.ndarray, quality: int = 85) -> np.ndarray:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def crop(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Cuts shares of at most 5 % off at top, bottom, left and right."""
    (height, width), (t, b, left, right) = image.shape[:2], shares
    return image[
        int(t * height) : height - int(b * height), int(left * width) : width - int(right * width)
    ]


def turned(image: np.ndarray, degrees: int) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + degrees // 2) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def caption(image: np.ndarray, kind: int) -> np.ndarray:
    """A line on a bar over the picture (0), below it (1), or across the picture (2)."""
    height, width = image.shape[:2]
    bar = np.full((height // 8, width, 3), 255, np.uint8)
    place, scale = (5, height // 12), height / 500
    cv2.putText(bar, "An animal in the grass", place, 0, scale, (0, 0, 0), 2)
    if kind == 1:
        return np.vstack([image, bar])
    image = image.copy()
    if kind == 0:
        image[-len(bar) :] = bar
    else:
        place = (width // 10, height // 2)
        cv2.putText(image, "WHERE IS IT?", place, 0, width / 250, (255,) * 3, width // 80 + 1)
    return image


def run(args) -> None:
    rng = np.random.default_rng(0)
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "JPEG of quality 30": lambda i: jpeg(i, 30),
        "half the size": lambda i: cv2.resize(i, None, fx=0.5, fy=0.5, interpolation=3),
        "mirrored": lambda i: jpeg(i[:, ::-1]),
        "5 % cropped at every side": lambda i: jpeg(crop(i, np.full(4, 0.05))),
        "5 % cropped at one side": lambda i: jpeg(crop(i, np.eye(4)[rng.integers(4)] * 0.05)),
        "up to 5 % cropped at each side": lambda i: jpeg(crop(i, rng.random(4) * 0.05)),
        "hue turned by 60 degrees": lambda i: jpeg(turned(i, 60)),
        "grey": lambda i: np.repeat(cv2.cvtColor(i, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
        "darker (gamma 1.8)": lambda i: (255 * (i / 255) ** 1.8).astype(np.uint8),
        "inverted": lambda i: 255 - i,
        "captioned": lambda i: jpeg(caption(i, rng.integers(3))),
        "mirrored, cropped, quality 60": lambda i: jpeg(crop(i[:, ::-1], np.full(4, 0.05)), 60),
        "mirrored, recoloured, captioned": lambda i: jpeg(
            caption(turned(np.ascontiguousarray(i[:, ::-1]), 60), rng.integers(3))
        ),
    }
    train, test = (
        [path for folder in folders for path in image_files(Path(folder))]
        for folders in (args.train, args.test)
    )
    others, rows = np.stack([sketch(read_image(str(path))) for path in test]), []
    altered: dict[str, list[np.ndarray]] = {name: [] for name in changes}
    for path in test:
        image = read_image(str(path))
        for name, change in changes.items():
            altered[name].append(sketch(np.ascontiguousarray(change(image))))
    for name, sketches in altered.items():
        pairs = copies(np.stack(sketches), others, altered=True)
        found = len(set(pairs[pairs[:, 0] == pairs[:, 1], 0].tolist()))
        wrong = int((pairs[:, 0] != pairs[:, 1]).sum())
        rows.append([name, f"{found / len(test):.3f}", f"{wrong:,}"])
    started = perf_counter()
    unlike = np.stack([sketch(read_image(str(path))) for path in train])
    read = perf_counter()
    wrong_pairs = copies(unlike, others, altered=True)
    took = read - started, perf_counter() - read
    print(f"{len(train):,} images: read in {took[0]:.1f} s, compared in {took[1]:.1f} s")
    rows.append(["training images as they are", "", f"{len(wrong_pairs):,}"])
    TextTable(["copies of test images", "found", "wrong pairs"], rows, (1, 2)).print()
    print(
        f"{len(train):,} x {len(test):,} = {len(train) * len(test):,} pairs that should be unlike"
    )
    for i, j in wrong_pairs[:10].tolist():
        print(f"{train[i]} = {test[j]}")
    if args.json:
        print(f"json: {save_json(args.json, dict(rows=rows, train=len(train), test=len(test)))}")


if __name__ == "__main__":
    main(run, *OPTIONS, description=__doc__)

"""Times the full set of measures beside PySODMetrics in the same process."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from codmoe.console import TextTable
from codmoe.evaluation.measures import EXTRA, extra_measures, find_truths, measure_maps
from codmoe.evaluation.measures.reference import reference_measures
from codmoe.evaluation.measures.truth import GroundTruthCache, ground_truth
from codmoe.evaluation.timing import Call, side_by_side, warmed
from codmoe.files import save_json
from codmoe.machine import available_cores, check_device


def sample_pairs(count: int, size: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps as networks make them, and masks: one to three ellipses, the map blurred and displaced.

    Returns:
        ``count`` maps (size, size) float32 in [0, 1], and as many masks (size, size) bool.
    """
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for _ in range(count):
        mask, shifted = np.zeros((2, size, size), np.float32)
        for _ in range(rng.integers(1, 4)):
            centre, axes = rng.integers(size // 6, size * 5 // 6, 2), rng.integers(8, size // 4, 2)
            angle, move = float(rng.integers(180)), rng.integers(-6, 7, 2)
            for picture, place in ((mask, centre), (shifted, centre + move)):
                ellipse = tuple(map(int, place)), tuple(map(int, axes)), angle
                cv2.ellipse(picture, *ellipse, 0, 360, 1.0, -1)
        logits = 10 * (cv2.GaussianBlur(shifted, (0, 0), 4) - 0.5)
        logits += cv2.GaussianBlur(rng.normal(0, 8, mask.shape).astype(np.float32), (0, 0), 2)
        maps.append(1 / (1 + np.exp(-logits)))
        masks.append(mask > 0)
    return maps, masks


def benchmark(
    *,
    size: int = 448,
    images: int = 64,
    repeats: int = 5,
    devices: Sequence[str] = ("cpu",),
    extra: bool = False,
    json_file: str | None = None,
) -> dict[str, Any]:
    """Times PySODMetrics and ours in turn, on one CPU core and on each GPU given, and prints both.

    PySODMetrics computes what :func:`reference_measures` asks of
    it, with the boundary IoU that it has not and we add (about 1 ms an image).

    "Cold" computes what depends on the ground truth alone anew, as the first epoch does; "warm"
    finds it kept, as every later epoch, expert and method does: by its content, which is looked
    up each time. On a GPU, maps start on the host
    ("with transfer") or where a model left them ("in place"); results end on the host. With
    ``extra``, each measure by name is timed alone, on the core.

    Returns:
        The payload of the file: milliseconds an image (median of the repeats) by case, their ratio
        to PySODMetrics, and the largest difference between both results.
    """
    if images < 1 or repeats < 1 or size < 32:
        raise ValueError(
            f"images={images}, repeats={repeats}, size={size}; at least 1, 1 and 32 are needed"
        )
    for device in devices:
        check_device(device)
    cv2.setNumThreads(1)
    maps, masks = sample_pairs(images, size)
    cases = _cases(maps, masks, devices) | (_by_name(maps, masks) if extra else {})
    cpu = torch.device("cpu")  # a case ends with results on the host, so the GPU has finished too
    with np.errstate(all="ignore"):
        for case in cases.values():
            warmed(case, cpu, 1)  # first calls load libraries and kernels
        samples = side_by_side(cases, cpu, repeats=repeats)
    seconds = {name: sample.seconds for name, sample in samples.items()}
    each = {name: 1e3 * statistics.median(times) / images for name, times in seconds.items()}
    spread = {n: [1e3 * f(t) / images for f in (min, max)] for n, t in seconds.items()}
    reference = each["PySODMetrics"]
    payload = {
        "size": size,
        "images": images,
        "repeats": repeats,
        "cpu": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(d) for d in devices if d != "cpu"],
        "torch": torch.__version__,
        "ms_per_image": each,
        "ms_range": spread,
        "ratio": {name: reference / value for name, value in each.items()},
        "largest_difference": _difference(maps, masks, devices),
    }
    _show(payload)
    if json_file:
        print(f"json: {save_json(json_file, payload)}")
    return payload


def _cases(
    maps: list[np.ndarray], masks: list[np.ndarray], devices: Sequence[str]
) -> dict[str, Call]:
    kept = GroundTruthCache()
    tensors = [torch.from_numpy(prob) for prob in maps]
    cores = available_cores()

    def ours(
        device: str, batch: int, cold: bool = False, full: bool = True, threads: int = 1, there=None
    ) -> list[dict[str, Any]]:
        torch.set_num_threads(threads)
        cache = GroundTruthCache() if cold else kept
        results = []
        for start in range(0, len(maps), batch):
            part = slice(start, start + batch)
            # Warm too looks masks up by their content.
            truths = find_truths(masks[part], full, cache, on_gpu=device != "cpu")
            probs = there[part] if there else [prob.to(device) for prob in tensors[part]]
            results += measure_maps(probs, truths, full=full)
        torch.set_num_threads(1)
        return results

    cases: dict[str, Call] = {
        "PySODMetrics": lambda: _reference(maps, masks),
        "ours, cpu, cold": lambda: ours("cpu", 16, cold=True),
        "ours, cpu, warm": lambda: ours("cpu", 16),
        "ours, cpu, cold, IoU, Dice, MAE": lambda: ours("cpu", 16, cold=True, full=False),
        "ours, cpu, warm, IoU, Dice, MAE": lambda: ours("cpu", 16, full=False),
    }
    for d in devices:
        if d == "cpu":
            continue
        placed = [prob.to(d) for prob in tensors]
        more = {
            "cold, with transfer": partial(ours, d, 64, cold=True),
            f"cold, with transfer, {cores} threads": partial(ours, d, 64, cold=True, threads=cores),
            "warm, with transfer": partial(ours, d, 64),
            "warm, in place": partial(ours, d, 64, there=placed),
        }
        cases |= {f"ours, {d}, {name}": case for name, case in more.items()}
    return cases


def _by_name(maps: list[np.ndarray], masks: list[np.ndarray]) -> dict[str, Call]:
    """One case for each measure of ``EXTRA``; the map itself stands for the image."""
    levels = [np.round(255 * prob).astype(np.uint8) for prob in maps]
    probs = [(level - level.min()) / np.ptp(level) for level in levels]

    def alone(name: str) -> None:
        for prob, level, mask in zip(probs, levels, masks, strict=True):
            extra_measures(prob, level, mask, [name], np.dstack([level] * 3))

    return {f"by name: {name}": partial(alone, name) for name in EXTRA}


def _reference(maps: list[np.ndarray], masks: list[np.ndarray]) -> list[dict[str, Any]]:
    return [reference_measures(prob, mask) for prob, mask in zip(maps, masks, strict=True)]


def _difference(
    maps: list[np.ndarray], masks: list[np.ndarray], devices: Sequence[str]
) -> dict[str, float]:
    theirs = _reference(maps, masks)
    found = {}
    for device in devices:
        tensors = [torch.from_numpy(prob).to(device) for prob in maps]
        ours = measure_maps(tensors, [ground_truth(mask) for mask in masks])
        found[device] = max(
            float(np.abs(np.subtract(a[key], b[key])).max())
            for a, b in zip(ours, theirs, strict=True)
            for key in b
        )
    return found


def _show(payload: dict[str, Any]) -> None:
    title = f"{payload['images']} maps of {payload['size']} px, torch {payload['torch']}"
    rows = []
    for name, value in payload["ms_per_image"].items():
        low, high = payload["ms_range"][name]
        ratio = f"{payload['ratio'][name]:.1f}"
        rows.append([name, f"{value:.3f}", f"{low:.3f} to {high:.3f}", ratio])
    heads = ["", "ms/image", "lowest to highest", "times as fast"]
    TextTable(heads, rows, title=title).print()
    for device, value in payload["largest_difference"].items():
        print(f"largest difference from PySODMetrics on {device}: {value:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=448, help="side of the maps in pixels")
    parser.add_argument("--images", type=int, default=64, help="number of maps")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--device", help="cuda, or cpu alone; by default what there is")
    parser.add_argument("--extra", action="store_true", help="also each measure by name, alone")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        benchmark(
            size=args.size,
            images=args.images,
            repeats=args.repeats,
            devices=["cpu"] if device == "cpu" else ["cpu", device],
            extra=args.extra,
            json_file=args.json,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

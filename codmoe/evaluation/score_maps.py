"""Scores saved maps of any method against masks, so that published maps can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from rich.progress import track

from codmoe import __version__
from codmoe.datasets.integrity import name_peculiar
from codmoe.datasets.layouts import (
    IMAGE_EXTENSIONS,
    files_by_stem,
    image_files,
    nested_words,
    sharing,
    stem_of,
)
from codmoe.datasets.reading import Mask, decode, fits, peculiarities, read_mask
from codmoe.evaluation.cod_metric import image_at
from codmoe.evaluation.conventions import CONVENTIONS
from codmoe.evaluation.measures import (
    aggregate,
    batch_measures,
    checked_extra,
    image_scalars,
    mean_curves,
)
from codmoe.evaluation.tables import result_rows, result_table
from codmoe.files import check_writable, save_json
from codmoe.machine import available_cores, check_device
from codmoe.messages import listed, note, warn

BATCH = 8
# The test folder of COD10K-v3 holds masks of images without camouflaged object too.
NOT_CAMOUFLAGED = "COD10K-NonCAM-"
# Folder names that say nothing about the data set; the folder above does.
_GENERIC = {"gt", "gt_object", "masks", "mask", "maps", "pred", "preds", "predictions", "test"}


class MapPair(NamedTuple):
    """A saved map and the mask of the same stem."""

    stem: str
    map: Path
    mask: Path


def match_maps(pred: Path, gt: Path, *, say: bool = True) -> list[MapPair]:
    """Maps and masks of equal stem, sorted by stem; maps without mask are reported and left out,
    and so are masks of a set without any map that lie in one folder with another's.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A folder holds no images, or a mask has no map.
    """
    suffixes = (*IMAGE_EXTENSIONS, ".npy")
    maps = files_by_stem(pred, "--pred", extensions=suffixes)
    masks = files_by_stem(gt, "--gt")
    if not masks:
        raise ValueError(f"--gt: no image files in {gt}; give the folder of the masks themselves")
    if say and (unread := nested_words(gt, pred)):
        warn(unread)
    told: list[str] = []
    missing = sorted(masks.keys() - maps.keys())
    others = [stem for stem in missing if stem.startswith(NOT_CAMOUFLAGED)]
    if others and not any(stem.startswith(NOT_CAMOUFLAGED) for stem in maps):
        told.append(f"{len(others):,} masks {NOT_CAMOUFLAGED}* left out, as the protocol of COD10K")
        masks = {stem: path for stem, path in masks.items() if stem not in others}
        missing = [stem for stem in missing if stem in masks]
    for part in sharing(gt) if missing else ():
        stems = {stem_of(path) for path in image_files(part.folders.image)}
        if stems.isdisjoint(maps):
            told.append(f"{len(stems & masks.keys()):,} masks of {part.folders.image} left out")
            masks = {stem: path for stem, path in masks.items() if stem not in stems}
            missing = [stem for stem in missing if stem in masks]
    if missing:
        unread = nested_words(pred, gt, suffixes)
        held = f"maps named {listed(sorted(maps), show=repr)}" if maps else "no image files"
        raise ValueError(
            f"{len(missing):,} of {len(masks):,} masks in {gt} have no map in {pred}: "
            f"{listed(missing, show=repr)}; maps are matched to masks by stem, every mask needs "
            f"one, and the folder holds {held}" + (unread and f"; {unread}")
        )
    for text in told if say else ():
        print(f"{gt}: {text}")
    if say and (extra := len(maps.keys() - masks.keys())):
        warn(f"{pred}: {extra:,} of {len(maps):,} maps have no mask in {gt} and are left out")
    return [MapPair(stem, maps[stem], masks[stem]) for stem in sorted(masks)]


def read_map(path: Path) -> np.ndarray:
    """A saved map as probabilities, (H, W) float32.

    8 bits are divided by 255, 16 by 65535; a float TIFF or ``.npy`` holds probabilities.

    Raises:
        ValueError: The file is unreadable, in colour, half transparent, or holds NaN or what is
            no probability.
    """
    if path.suffix.lower() == ".npy":
        try:
            pixels = np.load(path, allow_pickle=False).squeeze()
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} is unreadable as an array ({error})") from error
    else:
        pixels = decode(str(path))
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        if (pixels[..., :3] != pixels[..., :1]).any():
            raise ValueError(f"{path} is in colour; a map is grey, 0 to 255")
        if (pixels[..., 3:] != pixels[:1, :1, 3:]).any():
            raise ValueError(f"{path} has an alpha channel that varies; save it in grey alone")
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"{path} has the shape {pixels.shape}; a map is (H, W)")
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    low, top = pixels.min(), pixels.max()
    if pixels.dtype.kind != "f" or not (low >= 0 and top <= 1):
        raise ValueError(
            f"{path} holds {pixels.dtype} values from {low:g} to {top:g}; a map is 0 to 255 in 8 "
            "bits, 0 to 65535 in 16, or probabilities"
        )
    return pixels.astype(np.float32)


def score_maps(
    pred: str | os.PathLike,
    gt: str | os.PathLike,
    *,
    resize: bool = False,
    device: str = "cpu",
    workers: int | None = None,
    backend: str = "torch",
    extra: Sequence[str] | str = (),
    images: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """All measures of the maps in one folder.

    Args:
        pred: Folder of maps; see :func:`read_map`.
        gt: Folder of masks, each with a map of the same stem.
        resize: Bring maps of any other size to the mask's, bilinearly; those a few pixels off are
            anyway.
        device: Where to compute, e.g. ``"cuda"``.
        workers: Threads that read files; on the CPU they compute as well.
        backend: ``"torch"`` or ``"pysodmetrics"``.
        extra: Further measures; see :class:`CODMetric`.
        images: Folder of the images themselves, which ``CCM`` reads.

    Returns:
        A row of :func:`aggregate` with ``images``, ``curves`` and
        ``resized``, the number of maps that were not of their mask's size.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: Maps are missing, unreadable or of another size.
    """
    check_device(device)
    pairs = match_maps(Path(pred), Path(gt))
    extra, pictures = checked_extra(extra), _pictures(pairs, images) if images else {}
    batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]

    def run(batch: Sequence[MapPair]) -> list[dict[str, Any]]:
        loaded = [_load(pair, resize) for pair in batch]
        probs = [torch.from_numpy(prob).to(device) for prob, _, _ in loaded]
        masks = [mask.pixels for _, mask, _ in loaded]
        seen = [
            image_at(pictures[pair.stem], mask.shape) if pictures and "CCM" in extra else None
            for pair, mask in zip(batch, masks, strict=True)
        ]
        measures = batch_measures(probs, masks, backend=backend, extra=extra, images=seen)
        for image, (prob, mask, stored) in zip(measures, loaded, strict=True):
            resized = stored != prob.shape
            turned = resized and stored == prob.shape[::-1]
            image["odd"] = (*_oddities(prob, mask), turned, resized, peculiarities(mask))
        return measures

    measured: list[dict[str, Any]] = []
    with _one_thread_each(), ThreadPoolExecutor(workers or available_cores()) as pool:
        done = track(pool.map(run, batches), "scoring", len(batches), transient=True)
        for measures in done:
            measured += measures
    dark, even, inverted, turned, resized, peculiar = zip(
        *(image.pop("odd") for image in measured), strict=True
    )
    for odd, say, what in (
        (dark, warn, "hold no value above one half, so that nothing is object in IoU and Dice: "
         "{0, 1} in 8 bits, or 0 to 255 or to 4095 in 16, are to be saved as 0 to 255 in 8 bits"),
        (even, warn, "have one value everywhere that is not 0"),
        (inverted if 2 * sum(inverted) > len(pairs) else (), warn,
         "are darker on the object than elsewhere, as if inverted"),
        (turned, warn, "have the sides of their masks swapped, as if turned by 90 degrees"),
        (resized, note if resize else warn, "were brought to their masks' size"),
    ):  # fmt: skip
        if files := [pair.map.name for pair, is_odd in zip(pairs, odd, strict=False) if is_odd]:
            say(f"{pred}: {len(files):,} of {len(pairs):,} maps {what}: {listed(files)}")
    name_peculiar(str(gt), [pair.mask for pair in pairs], peculiar, warn)
    row: dict[str, Any] = aggregate(measured)
    scalars = map(image_scalars, measured)
    row["images"] = {pair.stem: s for pair, s in zip(pairs, scalars, strict=True)}
    return row | {"curves": mean_curves(measured), "resized": sum(resized)}


def _oddities(prob: np.ndarray, mask: Mask) -> tuple[bool, bool, bool]:
    """Whether a map is dark, of one value, or darker on the object than elsewhere."""
    low, top, inside = float(prob.min()), float(prob.max()), mask.pixels > 0
    even = low == top
    inverted = not even and inside.any() and prob[inside].mean() < prob[~inside].mean()
    return 0 < top <= 0.5 and not even, even and top > 0, bool(inverted)


def _pictures(pairs: Sequence[MapPair], folder: str | os.PathLike) -> dict[str, Path]:
    found = files_by_stem(Path(folder), "--images")
    missing = [pair.stem for pair in pairs if pair.stem not in found]
    if missing:
        raise ValueError(f"--images: {len(missing):,} masks have no image: {listed(missing)}")
    return found


def score_folders(
    preds: Sequence[str],
    gts: Sequence[str],
    *,
    json_file: str | None = None,
    method: str | None = None,
    datasets: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Scores one method's maps on one or more data sets, prints the table and writes the JSON.

    Args:
        preds: Folders of maps.
        gts: Folder of masks of each.
        json_file: Result file; an earlier one is kept under a dated name.
        method: Name of the method; by default the folder of its maps.
        datasets: Name of each data set; by default the folder of its masks.
        images: Folder of images of each, which the measure ``CCM`` reads.
        options: As of :func:`score_maps`.

    Returns:
        The payload of the file. For one data set it is the row itself (``IoU``, ``Sm``, ...,
        ``images``, ``curves``) with ``method`` and ``dataset``; for several it holds
        ``table[dataset][method]``, as ``codmoe test`` writes it.

    Raises:
        ValueError: There are not as many folders of masks as of maps, or two data sets of one
            name; otherwise as :func:`score_maps`.
    """
    if len(preds) != len(gts):
        raise ValueError(f"--pred names {len(preds)} folder(s) and --gt {len(gts)}; give one each")
    if images and len(images) != len(gts):
        raise ValueError(f"--images names {len(images)} folder(s) for {len(gts)} data set(s)")
    names = list(datasets or [folder_name(gt) for gt in gts])
    if len(names) != len(gts):
        raise ValueError(f"--datasets gives {len(names)} name(s) for {len(gts)} data set(s)")
    if len(set(names)) != len(names):
        raise ValueError(f"data sets {names} share a name; name each with --datasets")
    method = method or _method_name(preds, names)
    for pred, gt in zip(preds, gts, strict=True):
        match_maps(Path(pred), Path(gt), say=False)  # all, before the first is measured
    if json_file:
        check_writable(json_file)
    seen: list[str | None] = list(images) if images else [None] * len(gts)
    each = zip(preds, gts, seen, strict=True)
    rows = [score_maps(pred, gt, images=folder, **options) for pred, gt, folder in each]
    table = {name: {method: row} for name, row in zip(names, rows, strict=True)}
    result_table(result_rows(table), method).print()
    payload: dict[str, Any] = {
        "pred": [str(pred) for pred in preds],
        "gt": [str(gt) for gt in gts],
        "versions": {"codmoe": __version__, "torch": torch.__version__},
        "conventions": CONVENTIONS,
    }
    one = {"method": method, "dataset": names[0], **rows[0]}
    payload = (one if len(rows) == 1 else {"table": table}) | payload
    if json_file:
        print(f"json: {save_json(json_file, payload)}")
    return payload


def folder_name(folder: str | os.PathLike, but: Sequence[str] = ()) -> str:
    """The last part of a path that says something: of ``CAMO/GT`` it is CAMO. Data sets named in
    ``but`` are passed over: of ``SINet/COD10K`` it is SINet, also where the set is COD10K-v3.
    """

    def telling(part: str) -> bool:
        part = part.lower()
        sets = [name.lower() for name in but]
        return part not in _GENERIC and not any(s.startswith(part) for s in sets)

    parts = Path(folder).resolve().parts
    return next((part for part in reversed(parts) if telling(part)), parts[-1])


def _method_name(preds: Sequence[str], datasets: Sequence[str]) -> str:
    names = {folder_name(pred, but=datasets) for pred in preds}
    if len(names) > 1:
        raise ValueError(
            f"--pred names folders of {', '.join(sorted(names))}; score one method at a time, or "
            "name it with --method"
        )
    return names.pop()


def _load(pair: MapPair, resize: bool) -> tuple[np.ndarray, Mask, tuple[int, ...]]:
    """A map at its mask's size, the mask, and the size at which the map is stored."""
    prob, mask = read_map(pair.map), read_mask(str(pair.mask))
    if prob.shape == mask.pixels.shape:
        return prob, mask, prob.shape
    (h, w), (mh, mw) = prob.shape, mask.pixels.shape
    if not resize and not fits((mh, mw), (h, w)):
        raise ValueError(
            f"{pair.map} is {w}x{h} and its mask {mw}x{mh}; --resize brings maps to the size of "
            "their masks (bilinear)"
        )
    return cv2.resize(prob, (mw, mh), interpolation=cv2.INTER_LINEAR), mask, (h, w)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch and OpenCV with one thread, since every worker is one."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])

"""Checks of the files that the doctor read: rules, each with what to do, and look-alikes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codmoe.datasets.doctor.fitting import TOO_MANY as MISFITS
from codmoe.datasets.doctor.fitting import UNFIT
from codmoe.datasets.doctor.records import ImageRecord, MaskRecord
from codmoe.datasets.doctor.similarity import copies, groups
from codmoe.datasets.layouts import Part
from codmoe.datasets.reading import PECULIAR, TOO_MANY, fits

LEVELS = ("error", "warning", "note")


@dataclass
class Finding:
    """One thing that is wrong, with every file it is wrong with.

    Args:
        level: ``"error"`` must be mended, ``"warning"`` looked at, ``"note"`` known.
        check: What was looked for, in a few words.
        where: The set, or the two sets.
        what: What that means.
        advice: What to do.
        files: One row per case: a file, or several that belong together.
    """

    level: str
    check: str
    where: str
    what: str
    advice: str
    files: list[tuple[str, ...]]


class Examined(NamedTuple):
    """A part and the records of its pairs."""

    part: Part
    records: Sequence[tuple[ImageRecord | None, MaskRecord | None]]


# Of images and of masks: level, check, what it means, what to do, and which records.
_Rule = tuple[str, str, str, str, Callable]
IMAGE_RULES: tuple[_Rule, ...] = (
    ("warning", "damaged images", "the decoder made up a part of the picture",
     "look at them; download them again", lambda r: r.damage),
    ("warning", "images with EXIF rotation",
     "viewers turn them, training does not: it reads the pixels as stored, and so must the mask be",
     "where the mask fits the turned picture, store the image turned (mogrify -auto-orient)",
     lambda r: "exif" in r.traits),
    ("warning", "images with transparent pixels", "transparency is dropped; what is under it shows",
     "flatten them onto the background that is meant", lambda r: "alpha_used" in r.traits),
    ("note", "images with an alpha channel", "it is opaque everywhere, and dropped", "nothing",
     lambda r: "alpha" in r.traits and "alpha_used" not in r.traits),
    ("note", "images with a palette", "converted to RGB when read", "nothing",
     lambda r: "palette" in r.traits),
    ("note", "images of 16 bits", "scaled to 8 bits when read; dark ones lose their shades",
     "if they look black, stretch their values and store 8 bits", lambda r: "16bit" in r.traits),
    ("error", "images of one colour", "nothing is to be seen in them",
     "download them again, or leave them out", lambda r: r.sketch.max() <= 6),
    ("error", "images of black and white alone", "they look like masks",
     "put the photographs there", lambda r: "two values" in r.traits),
    ("warning", "CMYK images", "converted to RGB without their colour profile, so colours are off",
     "convert them to RGB with their profile", lambda r: "cmyk" in r.traits),
)  # fmt: skip
MASK_RULES: tuple[_Rule, ...] = (
    ("warning", "damaged masks", "the decoder made up a part of the mask",
     "look at them; download them again", lambda r: r.damage),
    ("warning", "empty masks", "no pixel is object: IoU is undefined or 0, and nothing is learnt",
     "if the image has an object, mend the mask; else leave the image out",
     lambda r: "empty" in r.traits),
    ("warning", "all-white masks", "every pixel is object", "mend the mask, or leave the image out",
     lambda r: "whole" in r.traits),
    ("warning", "masks that look inverted",
     "the object is most of the image and most of its border",
     "if the object is what is black, invert them", lambda r: "inverted" in r.traits),
    ("warning", "masks of a few pixels", PECULIAR["tiny"], "look for what is missing",
     lambda r: "tiny" in r.traits),
    ("warning", "soft masks", PECULIAR["soft"], "if that is not what is meant, threshold them",
     lambda r: "soft" in r.traits),
    ("warning", "masks of several colours", "all of them are object",
     "if colours are classes, make one mask of 0 and 255", lambda r: "classes" in r.traits),
    ("note", "coloured masks", "black is background, and the colour object", "nothing",
     lambda r: "colours" in r.traits and "classes" not in r.traits),
    ("note", "masks in the alpha channel", "what is opaque is object", "nothing",
     lambda r: "alpha" in r.traits),
    ("note", "masks of 0 and 1", "read as they are meant here, but black in viewers, and empty for "
     "PySODMetrics and others", "multiply by 255 to use them elsewhere",
     lambda r: "zero_one" in r.traits),
    ("note", "masks of 0 and a value that is neither 1 nor white", "the other value is object, "
     "whatever it is; other tools may see no object", "if it is no class index, nothing",
     lambda r: "levels" in r.traits),
    ("warning", "masks with EXIF rotation", "it is not applied", "store the mask turned",
     lambda r: "exif" in r.traits),
)  # fmt: skip

_LIMITS = {
    "empty masks": TOO_MANY["empty"],
    "all-white masks": 1.0,
    "masks that look inverted": TOO_MANY["inverted"],
}


def all_findings(
    examined: Sequence[Examined], earlier: Sequence[Finding], waived: Collection[str] = ()
) -> list[Finding]:
    """Everything wrong with the files read, after ``earlier`` ones, the worst first."""
    findings = list(earlier)
    for part in examined:
        findings += _of_files(part)
    findings += _of_likeness(examined, waived)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _of_files(examined: Examined) -> Iterator[Finding]:
    where = examined.part.label
    images = [image for image, _ in examined.records if image]
    masks = [mask for _, mask in examined.records if mask]
    for kind, records in (("images", images), ("masks", masks)):
        bad: dict[str, list[tuple[str, ...]]] = {}
        for record in records:
            if record.error:
                bad.setdefault(record.error, []).append((record.path,))
        advice = "download them again, or leave them out"
        for reason, files in bad.items():
            yield Finding("error", f"unusable {kind}", where, reason, advice, files)
    yield from _sizes(examined)
    for rules, records in ((IMAGE_RULES, images), (MASK_RULES, masks)):
        for level, check, what, advice, applies in rules:
            files = [(r.path,) for r in records if not r.error and applies(r)]
            if len(records) > 1 and len(files) >= _LIMITS.get(check, 2) * len(records):
                level = "error"
            if files:
                yield Finding(level, check, where, what, advice, files)
    yield from _equal_masks(examined)
    fits_none = sorted((mask.fit, mask.path) for mask in masks if mask.fit < UNFIT)
    if fits_none:
        many = len(fits_none) > max(2, MISFITS * len(masks))
        what = "outlines that lie on no edges of the image, the worst first: of another image?"
        advice = (
            "look at them (codmoe browse draws outlines); one or two of 100 right ones look so, too"
        )
        if many:
            advice = "look whether images and masks are in one order, turned or mirrored alike"
        files = [(path,) for _, path in fits_none]
        level = "error" if many else "warning"
        yield Finding(level, "masks that do not fit their image", where, what, advice, files)


def _equal_masks(examined: Examined) -> Iterator[Finding]:
    same: dict[bytes, dict[bytes, str]] = {}
    for image, mask in examined.records:
        if image and mask and mask.digest and not image.error:
            same.setdefault(mask.digest, {}).setdefault(image.digest, mask.path)
    files = [tuple(paths.values()) for paths in same.values() if len(paths) > 1]
    if files:
        what = "equal in every pixel, though their images differ: of another image?"
        advice = "look which image each belongs to"
        yield Finding("warning", "equal masks", examined.part.label, what, advice, files)


def _sizes(examined: Examined) -> Iterator[Finding]:
    turned: list[tuple[str, ...]] = []
    other: list[tuple[str, ...]] = []
    near: list[tuple[str, ...]] = []
    example = ""
    for image, mask in examined.records:
        if not image or not mask or image.error or mask.error or image.size == mask.size:
            continue
        if image.orientation >= 5 and image.size == mask.size[::-1]:
            turned.append((image.path, mask.path))
        elif examined.part.role == "test" and fits(image.size, mask.size):
            near.append((image.path, mask.path))
        else:
            other.append((image.path, mask.path))
            (w, h), (mw, mh) = image.size, mask.size
            example = example or f"the first is {mw}x{mh}, its image {w}x{h}"
    where = examined.part.label
    if turned:
        what = "they fit the image as its EXIF rotation shows it, not as it is stored"
        advice = "store the image turned (mogrify -auto-orient)"
        yield Finding("error", "masks of the turned image", where, what, advice, turned)
    if near:
        what = "a few pixels larger or smaller than the image; maps are brought to the mask's size"
        yield Finding("warning", "masks of nearly the image's size", where, what, "nothing", near)
    if other:
        advice = (
            "get image and mask from one source; only if they show the same section, resize the "
            "mask, nearest neighbour"
        )
        yield Finding("error", "masks of another size", where, example, advice, other)


def _of_likeness(examined: Sequence[Examined], waived: Collection[str]) -> Iterator[Finding]:
    """Equal images and copies, within a set and between sets."""
    parts = [part for part, _ in examined]
    found = [[i for i, _ in part.records if i and not i.error] for part in examined]
    sketches = [np.array([image.sketch for image in images]) for images in found]
    for a, b in combinations_with_replacement(range(len(parts)), 2):
        leak = (
            a != b and parts[a].role != parts[b].role and "train" in (parts[a].role, parts[b].role)
        )
        if leak and parts[b].role == "train":
            a, b = b, a  # the training images are those that may have been altered
        if not found[a] or not found[b]:
            continue
        same: dict[bytes, list[int]] = {}
        for j, image in enumerate(found[b]):
            same.setdefault(image.digest, []).append(j)
        equal = [
            (i, j)
            for i, image in enumerate(found[a])
            for j in same.get(image.digest, ())
            if a != b or i < j
        ]
        near = map(tuple, copies(sketches[a], sketches[b], altered=leak).tolist())
        for pairs, is_equal in ((equal, True), (sorted(set(near) - set(equal)), False)):
            shift = 0 if a == b else len(found[a])
            both = found[a] + found[b]
            joined = groups(
                np.array(
                    [
                        (i, j + shift)
                        for i, j in pairs
                        if not (leak and _is_waived(waived, found[a][i].path, found[b][j].path))
                    ]
                )
            )
            files = [tuple(both[i].path for i in group) for group in joined]
            if files:
                yield _likeness(parts[a], parts[b], files, is_equal, leak)


def _is_waived(waived: Collection[str], *paths: str) -> bool:
    return any(name in waived for path in paths for name in (Path(path).name, Path(path).stem))


def _likeness(
    a: Part, b: Part, files: list[tuple[str, ...]], is_equal: bool, leak: bool
) -> Finding:
    where = a.label if a is b else f"{a.label} and {b.label}"
    level = "error" if leak else "warning"
    if is_equal:
        check = "images that are there twice" if a is b else "the same images"
        what = "equal in every pixel"
        advice = "keep one of each" if a is b else "know that the sets overlap"
    elif leak:
        check = "copies"
        what = "one picture, re-encoded, mirrored, cropped, recoloured or captioned"
        advice = "know that the sets overlap"
    else:
        check = "images that look alike"
        what = "the same picture at another size or quality, or frames of one scene"
        advice = "look at them"
        if a is b:
            advice += ": copies weigh twice, and a held-out split may tear them apart"
    if leak:
        check += " in training and test"
        what += ": the test measures memory"
        advice = "take them out of the training set; --waive NAME those that are none"
    return Finding(level, check, where, what, advice, files)

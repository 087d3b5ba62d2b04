"""Pairs the files of a data set by name, and finds what does not pair or is not all there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codmoe.datasets.doctor.checks import Finding
from codmoe.datasets.layouts import (
    Part,
    image_files,
    nested_files,
    outsiders,
    stem_of,
    without_others,
)

_Files = Mapping[str, Sequence[Path]]


@dataclass
class Listing:
    """The files of one part.

    Args:
        part: The part.
        jobs: Image and mask, either of which may be None.
        images: Number of images.
        left_out: Images in the folder that the part does not use.
        findings: Faults that the names alone tell.
    """

    part: Part
    jobs: list[tuple[str | None, str | None]] = field(default_factory=list)
    images: int = 0
    left_out: int = 0
    findings: list[Finding] = field(default_factory=list)


# Level, check, what it means, and what to do.
_RULES = {
    "twice": ("error", "two {kind} of one stem", "of several files it is not known which is meant",
              "keep one file for each stem"),
    "alike": ("warning", "{kind} whose names differ by case alone",
              "Windows and macOS keep one of them only", "rename them"),
    "case": ("error", "stems of image and mask differ by case", "they do not pair",
             "rename one of the two"),
    "no mask": ("error", "images without mask", "no file of the same stem in {folder}", "{advice}"),
    "no image": ("error", "masks without image", "no file of the same stem in {folder}",
                 "download the images again, or remove the masks"),
    "stray": ("warning", "images of neither set",
              "their names start with none of the known prefixes, so they are not used",
              "if they are to be trained on, name the folders by image_dir and mask_dir"),
    "none": ("error", "no images", "the folder holds none that is used", "{advice}"),
    "nested": ("warning", "{kind} in sub-folders", "only files of {folder} itself are read",
               "put what is meant into one folder; whole sets each with a folder of images and one "
               "of masks are found by codmoe doctor ROOT"),
    "few": ("error", "number of images", "{found:,} of the protocol's {expected:,}: numbers would "
            "not compare with published ones", "download the data set again, whole"),
    "many": ("warning", "number of images", "{found:,} where the protocol has {expected:,}: "
             "numbers will not compare with published ones", "find out what was added"),
}  # fmt: skip


def list_part(part: Part, parts: Sequence[Part]) -> Listing:
    """Pairs the files of a part by stem, and finds all that is wrong with their names."""
    images, left_out = _by_stem(part.folders.image, part.prefix)
    masks, _ = _by_stem(part.folders.mask, part.prefix)
    jobs = _jobs(images, masks, part.folders.shared_masks)
    listing = Listing(part, jobs, len(images), left_out)

    def say(rule: str, rows: Iterable[Path | tuple[Path, ...]], **words: Any) -> None:
        level, check, what, advice = (text.format(**words) for text in _RULES[rule])
        files = [tuple(map(str, row if isinstance(row, tuple) else (row,))) for row in rows]
        if files:
            listing.findings.append(Finding(level, check, part.label, what, advice, files))

    for kind, files in (("images", images), ("masks", masks)):
        say("twice", (tuple(paths) for paths in files.values() if len(paths) > 1), kind=kind)
        by_case: dict[str, list[Path]] = {}
        for stem, paths in files.items():
            by_case.setdefault(stem.lower(), []).append(paths[0])
        say("alike", (tuple(paths) for paths in by_case.values() if len(paths) > 1), kind=kind)
    no_mask, no_image = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    lower = {stem.lower(): stem for stem in no_image}
    other_case = {s: lower[s.lower()] for s in no_mask if s.lower() in lower}
    say("case", ((images[s][0], masks[other][0]) for s, other in other_case.items()))
    no_mask = [s for s in no_mask if s not in other_case]
    no_image = [s for s in no_image if s not in other_case.values()]
    advice = _mask_advice(no_mask, no_image)
    say("no mask", (images[s][0] for s in no_mask), folder=part.folders.mask, advice=advice)
    if not part.folders.shared_masks:
        no_image = sorted(without_others(no_image, part.folders.mask))
        say("no image", (masks[s][0] for s in no_image), folder=part.folders.image)
    # Reported once, by the first of the parts that share the folder.
    first = next(p for p in parts if p.folders.image == part.folders.image)
    if part is first and part.layout != "COD10K-v3":
        say("stray", (part.folders.image / name for name in outsiders(part, parts)))
    image, mask = part.folders.image, part.folders.mask
    nested = dict(images=nested_files(image, mask), masks=nested_files(mask, image))
    for kind, folder in (("images", image), ("masks", mask)) if part is first else ():
        say("nested", nested[kind], kind=kind, folder=folder)
    if not listing.images:
        again = "unpack the data set again"
        say("none", [image], advice="see what lies in sub-folders" if nested["images"] else again)
    elif part.expected and listing.images != part.expected:
        rule = "few" if listing.images < part.expected else "many"
        say(rule, [part.folders.image], found=listing.images, expected=part.expected)
    return listing


def _by_stem(folder: Path, prefix: str | None) -> tuple[dict[str, list[Path]], int]:
    """Image files by stem, and the number of those that do not start with ``prefix``."""
    found: dict[str, list[Path]] = {}
    used = image_files(folder, prefix)
    for path in used:
        found.setdefault(stem_of(path), []).append(path)
    return found, len(image_files(folder)) - len(used)


def _jobs(images: _Files, masks: _Files, shared_masks: bool) -> list[tuple[str | None, str | None]]:
    def first(files: _Files, stem: str) -> str | None:
        return str(files[stem][0]) if stem in files else None

    stems = sorted(images if shared_masks else images.keys() | masks.keys())
    return [(first(images, stem), first(masks, stem)) for stem in stems]


def _mask_advice(no_mask: Sequence[str], no_image: Sequence[str]) -> str:
    """Advice that names what the masks' names have appended to the images', if they do."""
    endings = Counter(
        other[len(stem) :] for stem in no_mask[:50] for other in no_image if other.startswith(stem)
    )
    if endings:
        ending, count = endings.most_common(1)[0]
        if count > len(no_mask[:50]) / 2:
            return f"the masks end in {ending!r}: rename them to the names of the images"
    return "download the masks again, or remove the images"

"""Attributes of the object in an image, and IoU broken down by them: which expert suits what."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from codmoe.evaluation.cod_metric import (
    NO_MASK,
    PerImageMetric,
    as_mapping,
    by_dataset,
    identity,
    required,
    unique_stems,
)
from codmoe.evaluation.conventions import COMBINED
from codmoe.evaluation.measures import as_array, checked_mask
from codmoe.messages import listed, suggest
from codmoe.registry import METRICS

SPECK = 1e-4  # of the image: 20 pixels at 448 x 448
RING = 0.05  # of sqrt(H W): 22 pixels at 448 x 448
UNKNOWN = "unknown"

# Upper limits (exclusive) of all bins but the last, and the names of the bins.
BINS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "area": (
        (1e-12, 0.01, 0.05, 0.15),
        ("empty", "tiny (< 1 %)", "small (< 5 %)", "medium (< 15 %)", "large (≥ 15 %)"),
    ),
    "parts": ((1, 2, 4), ("none", "one", "few (2, 3)", "many (≥ 4)")),
    "contrast": (
        (0.1, 0.2, 0.3),
        ("hidden (< 0.1)", "low (< 0.2)", "medium (< 0.3)", "high (≥ 0.3)"),
    ),
    "boundary": (
        (2, 4, 8),
        ("compact (< 2)", "simple (< 4)", "complex (< 8)", "intricate (≥ 8)"),
    ),
    "centre_x": ((1 / 3, 2 / 3), ("left third", "middle third", "right third")),
    "centre_y": ((1 / 3, 2 / 3), ("top third", "middle third", "bottom third")),
}
SUPER_CLASS = "super_class"
# Attributes whose values are their own bins; "kind" is that of a synthetic image.
CATEGORIES = (SUPER_CLASS, "kind")

_COD10K = re.compile(r"COD10K-(?:CAM|NonCAM)-\d+-([A-Za-z]+)-")
# Length of contour in each pattern of 2 x 2 pixels, after Duda: a straight pair counts 1, a cut
# corner 1/sqrt(2), a diagonal pair two of those. Bit k of the index is the k-th of the 4 pixels.
_CONTOUR = np.array([0, 1, 1, 2, 1, 2, 3, 1, 1, 3, 2, 1, 2, 1, 1, 0], np.int64)
_LENGTHS = np.array([0.0, math.sqrt(0.5), 1.0, math.sqrt(2.0)])[_CONTOUR]
_WEIGHTS = np.array([[1, 2], [4, 8]], np.float32)
_AXES = ((1, 0), (0, 1))


def image_attributes(image: np.ndarray | None, mask: np.ndarray) -> dict[str, float]:
    """Attributes of the object in one image; all are independent of the image's size.

    * ``area``: share of the image that the object covers, 0 to 1.
    * ``parts``: 8-connected components of at least ``SPECK`` of the image; the largest always
      counts, so that a tiny object has one part and only an empty mask none.
    * ``contrast``: distance of the object from the ring of ``RING * sqrt(H W)`` pixels around it,
      0 (alike: well camouflaged) to 1 (nothing in common). It is the mean over four channels (L, a
      and b of CIELAB, and the gradient |dL/dx| + |dL/dy|, which stands for texture) of the
      Bhattacharyya (Hellinger) distance sqrt(1 - sum_i sqrt(p_i q_i)) of histograms of 32 bins,
      smoothed by a Gaussian of 1.5 bins. Few pixels differ by chance: on noise of one texture it
      is 0.05 for an object of 3,209 pixels, 0.17 for 197 and 0.28 for 49
      (``test_small_objects_look_shown``), so compare it among objects of one size.
    * ``boundary``: isoperimetric ratio P^2 / (4 pi A) of contour length and area, about 1 for a
      disc, 4/pi for a square, and n for n equal discs. The image's border closes the shape. P is
      Duda's estimate from 2 x 2 patterns (Pratt, Digital Image Processing).
    * ``centre_x``, ``centre_y``: centroid, 0 (left, top) to 1.

    An empty mask has area 0, parts 0, its centre at 0.5 and no contrast and boundary (NaN). A full
    mask has no surroundings, hence contrast NaN.

    Args:
        image: RGB, (H, W, 3) uint8; None leaves contrast NaN.
        mask: Ground truth in {0, 1}, (H, W).

    Raises:
        ValueError: The mask is not (H, W) or holds other values; the image does not fit it.
    """
    mask = checked_mask(mask).view(np.uint8)
    if image is not None and (image.shape != (*mask.shape, 3) or image.dtype != np.uint8):
        raise ValueError(
            f"The image is {image.dtype} of shape {image.shape}; give RGB as uint8 of shape "
            f"{(*mask.shape, 3)}, the size of the mask."
        )
    height, width = mask.shape
    values = dict(area=0.0, parts=0.0, contrast=math.nan, boundary=math.nan)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return values | dict(centre_x=0.5, centre_y=0.5)
    crop = mask[y : y + h, x : x + w]
    moments = cv2.moments(crop, binaryImage=True)
    pixels = moments["m00"]
    values["area"] = pixels / mask.size
    values["parts"] = _parts(crop, SPECK * mask.size)
    if image is not None:
        values["contrast"] = _contrast(image, mask, (x, y, w, h))
    values["boundary"] = _contour_length(crop) ** 2 / (4 * math.pi * pixels)
    # A pixel's centre lies half a pixel from its corner.
    values["centre_x"] = (x + moments["m10"] / pixels + 0.5) / width
    values["centre_y"] = (y + moments["m01"] / pixels + 0.5) / height
    return values


def super_class(stem: str) -> str | None:
    """COD10K's super-class in a file name, with or without folder and suffix, or None.

    ``COD10K-CAM-1-Aquatic-13-Pipefish-1027`` is type, super-class's number and name, sub-class's
    number and name, image. The camouflaged images have five: Aquatic, Terrestrial, Flying,
    Amphibian, Other; the others (``COD10K-NonCAM-3-Flying-1515``) may lack the sub-class.
    """
    found = _COD10K.match(re.split(r"[\\/]", stem)[-1])
    return found[1] if found else None


def attribute_bins(values: Iterable[float | str | None], name: str) -> list[str]:
    """The bin of each value, with the fixed limits of ``BINS`` so that methods are comparable.

    Args:
        values: Values of one attribute; NaN and None fall into ``"unknown"``.
        name: A key of ``BINS``, or one of ``CATEGORIES``, whose values are their own bins.

    Raises:
        ValueError: There is no such attribute.
    """
    if name in CATEGORIES:
        return [str(value) if value else UNKNOWN for value in values]
    if name not in BINS:
        known = [*BINS, *CATEGORIES]
        raise ValueError(f"There is no attribute {name!r} to bin; {suggest(name, known)}")
    limits, labels = BINS[name]
    array = np.array([math.nan if value is None else value for value in values], np.float64)
    bins = np.searchsorted(limits, array, side="right")
    return [
        UNKNOWN if math.isnan(value) else labels[index]
        for value, index in zip(array, bins, strict=True)
    ]


def breakdown(
    per_image: Mapping[str, Mapping[str, float]],
    attributes: Mapping[str, Mapping[str, float | str | None]],
) -> list[dict[str, Any]]:
    """Mean IoU of each source on the images of each bin of each attribute, and who wins there.

    Args:
        per_image: ``{source: {stem: IoU}}``; sources not in ``COMBINED`` are experts.
        attributes: ``{stem: {attribute: value}}`` for at least these stems. COD10K's super-class is
            read from the stems and need not be among them.

    Returns:
        One row per bin that has images: ``attribute``, ``bin``, ``n``, ``IoU`` ({source: mean}) and
        ``best``, the experts with the highest mean (several if equal to four decimals; empty if
        there are fewer than two experts). Super-classes are left out where no stem has one.

    Raises:
        ValueError: The sources do not cover the same images, or an image has no attributes.
    """
    stems = _common_stems(per_image, attributes)
    table = {name: np.array([ious[s] for s in stems], float) for name, ious in per_image.items()}
    rows = []
    for name, (labels, column) in binned(stems, attributes).items():
        for index, label in enumerate(labels):
            chosen = np.array(column) == index
            means = {source: float(ious[chosen].mean()) for source, ious in table.items()}
            row = dict(attribute=name, bin=label, n=int(chosen.sum()), IoU=means)
            rows.append(row | dict(best=_winners(means)))
    return rows


def binned(
    stems: Sequence[str], attributes: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[list[str], list[int]]]:
    """The bins of each attribute that hold an image, in their order, and that of each image.

    Arguments and errors as of :func:`breakdown`.
    """
    columns = {
        name: attribute_bins([attributes[stem][name] for stem in stems], name)
        for name in _names(stems, attributes)
    }
    classes = [super_class(stem) for stem in stems]
    if SUPER_CLASS not in columns and any(classes):
        columns[SUPER_CLASS] = attribute_bins(classes, SUPER_CLASS)
    found = {}
    for name, column in columns.items():
        ordered = BINS[name][1] if name in BINS else sorted(set(column) - {UNKNOWN})
        labels = [label for label in [*ordered, UNKNOWN] if label in column]
        found[name] = labels, [labels.index(label) for label in column]
    return found


def _parts(mask: np.ndarray, least: float) -> float:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    return float(max(1, int(np.count_nonzero(sizes >= least))))


def _contour_length(mask: np.ndarray) -> float:
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    patterns = cv2.filter2D(padded, cv2.CV_8U, _WEIGHTS, borderType=cv2.BORDER_CONSTANT)
    counts = cv2.calcHist([patterns], [0], None, [16], [0, 16]).ravel()
    return float(counts.astype(np.float64) @ _LENGTHS)


def _contrast(image: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int]) -> float:
    height, width = mask.shape
    reach = max(2, round(RING * math.sqrt(height * width)))
    x, y, w, h = box
    window = np.s_[
        max(0, y - reach) : min(height, y + h + reach),
        max(0, x - reach) : min(width, x + w + reach),
    ]
    inside = np.ascontiguousarray(mask[window])
    distance = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
    ring = ((distance > 0) & (distance <= reach)).view(np.uint8)
    if not ring.any():
        return math.nan
    lab = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2LAB)
    light, a, b = cv2.split(lab)
    slopes = [cv2.convertScaleAbs(cv2.Sobel(light, cv2.CV_16S, *axis)) for axis in _AXES]
    steep = cv2.add(slopes[0], slopes[1])
    distances = []
    for channel in (light, a, b, steep):
        pair = [cv2.calcHist([channel], [0], part, [32], [0, 256]) for part in (inside, ring)]
        pair = [counts.reshape(-1, 1) for counts in pair]  # OpenCV 5 has one axis only
        # Smoothed (reflected at the ends), since few pixels leave bins empty by chance.
        pair = [cv2.GaussianBlur(counts, (1, 7), 1.5) for counts in pair]
        distances.append(cv2.compareHist(pair[0], pair[1], cv2.HISTCMP_BHATTACHARYYA))
    return float(np.mean(distances))


def _common_stems(
    per_image: Mapping[str, Mapping[str, float]], attributes: Mapping[str, Any]
) -> list[str]:
    if not per_image or not next(iter(per_image.values())):
        raise ValueError("There is no image to break down by attribute.")
    first, *others = per_image
    stems = list(per_image[first])
    for other in others:
        differing = sorted(set(stems) ^ set(per_image[other]))
        if differing:
            raise ValueError(
                f"Sources {first!r} and {other!r} do not cover the same images; "
                f"{_images(differing)} of one only."
            )
    missing = [stem for stem in stems if stem not in attributes]
    if missing:
        raise ValueError(f"There are no attributes for {_images(missing)}.")
    return stems


def _names(stems: Sequence[str], attributes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = list(attributes[stems[0]])
    odd = [stem for stem in stems if list(attributes[stem]) != names]
    if odd:
        raise ValueError(
            f"{_images(odd)}: not the attributes of {stems[0]!r} ({', '.join(names)})."
        )
    return names


def _winners(means: Mapping[str, float]) -> list[str]:
    # Compared as printed, so that equal figures win together.
    ranked = {
        name: round(value, 4)
        for name, value in means.items()
        if name not in COMBINED and math.isfinite(value)
    }
    if len(ranked) < 2:
        return []
    return [name for name, value in ranked.items() if value == max(ranked.values())]


def _images(stems: Sequence[str]) -> str:
    return f"{len(stems)} image(s) ({listed(stems)})"


@METRICS.register_module()
class AttributeMetric(PerImageMetric):
    """:func:`image_attributes` of each image; logs nothing.

    ``table[dataset][stem]`` holds them, under the stems of ``CODMetric.table``, with ``kind`` where
    the data set tells one (synthetic images do). It is filled on rank 0 and empty elsewhere. Shape
    is that of the original mask; contrast is that of the network's input, brought to its size.
    Arguments as of :class:`PerImageMetric`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.table: dict[str, dict[str, dict[str, Any]]] = {}

    def process(self, data_batch: Any, data_samples: Iterable[Any]) -> None:
        """Keeps one record per image.

        Raises:
            ValueError: A sample has no ground truth.
        """
        inputs = (data_batch or {}).get("inputs")
        for i, sample in enumerate(map(as_mapping, data_samples)):
            mask = as_array(required(sample, "gt_mask", NO_MASK)).astype(np.uint8)
            image = None if inputs is None else _at_size(as_array(inputs[i]), mask.shape)
            record: dict[str, Any] = identity(sample)
            record["attributes"] = image_attributes(image, mask)
            if sample.get("kind") is not None:
                record["attributes"]["kind"] = str(sample["kind"])
            self.results.append(record)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Fills ``table``; there is nothing to log."""
        self.check_count(results)
        self.table = {}
        for dataset, records in by_dataset(results).items():
            stems = unique_stems(records)
            attributes = [record["attributes"] for record in records]
            self.table[dataset] = dict(zip(stems, attributes, strict=True))
        return {}


def _at_size(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Network input (3, h, w) uint8 as a picture of the mask's size, (H, W, 3)."""
    picture = np.ascontiguousarray(image.transpose(1, 2, 0))
    if picture.shape[:2] == size:
        return picture
    shrinks = picture.shape[0] > size[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, size[::-1], interpolation=method)

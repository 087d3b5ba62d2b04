import math

import cv2
import numpy as np
import pytest
import torch

from codmoe.evaluation.attributes import (
    BINS,
    attribute_bins,
    breakdown,
    image_attributes,
    super_class,
)
from codmoe.registry import METRICS
from codmoe.structures import CODDataSample


def disc(size=96, radius=20, centre=None):
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, centre or (size // 2, size // 2), radius, 1, -1)
    return mask


def painted(mask, inside, outside):
    return np.where(mask[..., None] == 1, np.uint8(inside), np.uint8(outside)).astype(np.uint8)


def test_a_rectangle_by_hand():
    mask = np.zeros((20, 40), np.uint8)
    mask[4:14, 8:28] = 1
    values = image_attributes(None, mask)
    assert values["area"] == 200 / 800
    assert values["parts"] == 1
    assert values["centre_x"] == pytest.approx(18 / 40)
    assert values["centre_y"] == pytest.approx(9 / 20)
    # Duda: 2 * (19 + 9) straight pairs of pixels and four cut corners.
    length = 2 * (19 + 9) + 4 / math.sqrt(2)
    assert values["boundary"] == pytest.approx(length**2 / (4 * math.pi * 200))
    assert math.isnan(values["contrast"])


def test_parts_join_diagonally_and_specks_do_not_count():
    mask = np.zeros((400, 400), bool)
    mask[10:30, 10:30] = mask[30:50, 30:50] = True  # touch at a corner: one part
    mask[100:120, 100:120] = True
    mask[300:303, 300:305] = True  # 15 pixels of 160,000 are below 1e-4
    assert image_attributes(None, mask)["parts"] == 2
    mask[300:304, 300:304] = True  # 17 pixels are not
    assert image_attributes(None, mask)["parts"] == 3
    only = np.zeros((400, 400), bool)
    only[5, 5] = True
    assert image_attributes(None, only)["parts"] == 1


def test_empty_and_full():
    image = np.zeros((9, 12, 3), np.uint8)
    empty = image_attributes(image, np.zeros((9, 12)))
    assert (empty["area"], empty["parts"], empty["centre_x"], empty["centre_y"]) == (0, 0, 0.5, 0.5)
    assert math.isnan(empty["contrast"]) and math.isnan(empty["boundary"])
    full = image_attributes(image, np.ones((12, 12), bool)[:9])
    assert (full["area"], full["parts"], full["centre_x"], full["centre_y"]) == (1, 1, 0.5, 0.5)
    assert math.isnan(full["contrast"]) and full["boundary"] > 1
    assert list(empty) == list(full)


def test_boundary_grows_with_complexity_and_not_with_size():
    small, large = disc(96, 30), disc(768, 240)
    ratios = [image_attributes(None, mask)["boundary"] for mask in (small, large)]
    assert ratios == pytest.approx([1.1, 1.1], abs=0.05)
    comb = small.copy()
    comb[:, ::4] = comb[:, 1::4] = 0
    assert image_attributes(None, comb)["boundary"] > 8
    two = np.hstack([small, small])
    assert image_attributes(None, two)["boundary"] == pytest.approx(2 * ratios[0])


def test_contrast_is_of_the_immediate_surroundings():
    mask = disc()
    noise = np.random.default_rng(0).integers(100, 140, (96, 96, 3), np.uint8)
    hidden = image_attributes(noise, mask)["contrast"]
    assert hidden < 0.15
    shown = image_attributes(painted(mask, (220, 30, 30), (30, 220, 30)), mask)["contrast"]
    # L, a and b share almost no bin; the gradient is zero nearly everywhere on both sides.
    assert 0.6 < shown < 0.8
    far = noise.copy()
    far[:10] = far[-10:] = (250, 0, 0)  # beyond the ring of 5 pixels
    assert image_attributes(far, mask)["contrast"] == hidden
    # Equal colours, other texture.
    board = np.full((96, 96, 3), 120, np.uint8)
    board[::2] = 100
    flat = painted(mask, 120, 0) + board * (mask[..., None] == 0)
    assert image_attributes(flat.astype(np.uint8), mask)["contrast"] > hidden + 0.1


def test_small_objects_look_shown():
    """The bias that the docstring tells, on blurred noise of one texture."""
    random = np.random.default_rng(0)
    means = []
    for radius in (32, 8, 4):
        values = []
        for _ in range(8):
            noise = cv2.GaussianBlur(random.normal(0, 60, (448, 448, 3)), (0, 0), 2)
            noise = np.clip(noise * 4 + 120, 0, 255).astype(np.uint8)
            values.append(image_attributes(noise, disc(448, radius))["contrast"])
        means.append(np.mean(values))
    assert means == pytest.approx([0.05, 0.17, 0.28], abs=0.04)


@pytest.mark.parametrize("box", [(0, 0, 3, 3), (17, 5, 20, 30), (10, 29, 11, 30)])
def test_objects_at_the_border(box):
    top, left, bottom, right = box
    mask = np.zeros((20, 30), np.uint8)
    mask[top:bottom, left:right] = 1
    values = image_attributes(np.zeros((20, 30, 3), np.uint8), mask)
    assert values["contrast"] == pytest.approx(0, abs=1e-6)
    assert values["centre_x"] == pytest.approx((left + right) / 60)
    assert values["centre_y"] == pytest.approx((top + bottom) / 40)


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (None, np.full((4, 4), 255), "binarise 0/255"),
        (None, np.array([[0, 2], [1, 0]]), "must hold 0 and 1 only"),
        (None, np.full((4, 4), np.nan), "must hold 0 and 1 only"),
        (None, np.zeros((4, 4, 1)), "must be \\(H, W\\)"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4)), "of shape \\(4, 4, 3\\)"),
        (np.zeros((4, 4, 3)), np.zeros((4, 4)), "float64"),
    ],
)
def test_mistakes_are_named(image, mask, words):
    with pytest.raises(ValueError, match=words):
        image_attributes(image, mask)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("COD10K-CAM-1-Aquatic-13-Pipefish-1027.jpg", "Aquatic"),
        ("COD10K-CAM-2-Terrestrial-46-StickInsect-2874", "Terrestrial"),
        ("Test/Image/COD10K-CAM-3-Flying-65-Owl-4570.jpg", "Flying"),
        ("COD10K-CAM-4-Amphibian-67-Frog-4736#2", "Amphibian"),
        ("COD10K-CAM-5-Other-69-Other-5065", "Other"),
        ("COD10K-NonCAM-3-Flying-1515", "Flying"),
        ("camourflage_00012", None),
        ("COD10K", None),
    ],
)
def test_super_class(stem, expected):
    assert super_class(stem) == expected


def test_bins():
    areas = attribute_bins([0.0, 0.001, 0.01, 0.049, 0.15, 1.0, math.nan, None], "area")
    assert [area.split()[0] for area in areas] == (
        ["empty", "tiny", "small", "small", "large", "large", "unknown", "unknown"]
    )
    parts = attribute_bins([0, 1, 2, 3, 4, 40], "parts")
    assert [part.split()[0] for part in parts] == ["none", "one", "few", "few", "many", "many"]
    assert attribute_bins(["Flying", None], "super_class") == ["Flying", "unknown"]
    assert all(len(labels) == len(limits) + 1 for limits, labels in BINS.values())
    with pytest.raises(ValueError, match="no attribute 'areas' to bin; did you mean 'area'"):
        attribute_bins([0.1], "areas")


IOUS = {
    "sinet": {"a": 0.9, "b": 0.5, "c": 0.2},
    "pranet": {"a": 0.7, "b": 0.50001, "c": 0.4},
    "mixture": {"a": 1.0, "b": 1.0, "c": 1.0},
}


def test_breakdown_by_hand():
    attributes = {
        "c": {"area": 0.3, "parts": 1.0},
        "b": {"area": 0.02, "parts": 1.0},
        "a": {"area": 0.02, "parts": 5.0},
        "unused": {"area": 0.0, "parts": 0.0},
    }
    rows = breakdown(IOUS, attributes)
    assert [(row["attribute"], row["bin"].split()[0], row["n"]) for row in rows] == [
        ("area", "small", 2),
        ("area", "large", 1),
        ("parts", "one", 2),
        ("parts", "many", 1),
    ]
    assert rows[0]["IoU"] == pytest.approx({"sinet": 0.7, "pranet": 0.600005, "mixture": 1.0})
    assert [row["best"] for row in rows] == [["sinet"], ["pranet"], ["pranet"], ["sinet"]]


def test_breakdown_says_ties_and_reads_super_classes():
    stems = ["COD10K-CAM-3-Flying-65-Owl-1", "COD10K-CAM-1-Aquatic-3-Crab-2"]
    ious = {"sinet": dict(zip(stems, (0.50001, 0.3), strict=True))}
    ious["pranet"] = dict(zip(stems, (0.50002, 0.2), strict=True))
    rows = breakdown(ious, {stem: {"contrast": math.nan} for stem in stems})
    assert [(row["attribute"], row["bin"], row["best"]) for row in rows] == [
        ("contrast", "unknown", ["sinet"]),
        ("super_class", "Aquatic", ["sinet"]),
        ("super_class", "Flying", ["sinet", "pranet"]),
    ]
    lone = breakdown({"sinet": ious["sinet"]}, {stem: {"area": 0.1} for stem in stems})
    assert lone[0]["best"] == []


def test_breakdown_misses_nothing_silently():
    area = {stem: {"area": 0.1} for stem in "abc"}
    with pytest.raises(ValueError, match="same images; 1 image\\(s\\) \\(d\\) of one only"):
        breakdown(IOUS | {"ujsc": dict.fromkeys("abcd", 0.5)}, area)
    with pytest.raises(ValueError, match="no attributes for 1 image\\(s\\) \\(c\\)"):
        breakdown(IOUS, {stem: area[stem] for stem in "ab"})
    with pytest.raises(ValueError, match="\\(b\\): not the attributes of 'a' \\(area\\)"):
        breakdown(IOUS, area | {"b": {"parts": 1.0}})
    with pytest.raises(ValueError, match="no image"):
        breakdown({}, {})


def sample(stem, dataset="CAMO", **meta):
    element = CODDataSample(metainfo={"stem": stem, "dataset": dataset, **meta})
    element.gt_mask = torch.zeros(30, 40, dtype=torch.uint8)
    element.gt_mask[10:20, 5:25] = 1
    return element


def test_attributes_by_data_set_and_stem():
    metric = METRICS.build({"type": "AttributeMetric"})
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    samples = [sample("a"), sample("a"), sample("b", "NC4K", kind="texture")]
    metric.process({"inputs": [image] * 3}, samples)
    assert metric.evaluate(3) == {}
    expected = image_attributes(pixels, samples[0].gt_mask.numpy())
    assert metric.table["CAMO"] == {"a": expected, "a#2": expected}
    assert metric.table["NC4K"] == {"b": expected | {"kind": "texture"}}


def test_an_image_of_another_size_is_brought_to_the_masks():
    metric = METRICS.build({"type": "AttributeMetric"})
    grey = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    grey[:, 21:43, 8:40] = 200  # the object, on the network's grid
    metric.process({"inputs": torch.stack([grey, grey.roll(20, 1)])}, [sample("a"), sample("b")])
    metric.evaluate(2)
    right, misplaced = (metric.table["CAMO"][stem] for stem in "ab")
    assert right["contrast"] > 1.5 * misplaced["contrast"] > 0
    assert right["area"] == misplaced["area"] == pytest.approx(200 / 1200)


def test_a_missing_truth_is_named():
    bare = sample("a")
    del bare.gt_mask
    with pytest.raises(ValueError, match="'a' has no `gt_mask`; load masks"):
        METRICS.build({"type": "AttributeMetric"}).process({}, [bare])

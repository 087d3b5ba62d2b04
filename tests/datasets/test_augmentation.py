"""Crops that keep the object, flips, blur, JPEG, copy-paste and sizes per batch."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

from codmoe.datasets.collate import multiscale_collate, stack_collate
from codmoe.datasets.synthetic import SyntheticCamouflage
from codmoe.datasets.transforms import (
    CopyPaste,
    PackCODInputs,
    RandomBlur,
    RandomColour,
    RandomJPEG,
    RandomWarp,
    pair_results,
)
from codmoe.models.preprocessor import CODDataPreprocessor
from codmoe.registry import TRANSFORMS

STILL = dict(scale=(1, 1), rotate=0, translate=0)


def pair(height=120, width=160, centre=(0.25, 0.5), radius=18, value=255):
    """A disc on black: image (H, W, 3) and mask (H, W)."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (int(width * centre[0]), int(height * centre[1])), radius, 1, -1)
    return np.repeat(mask[..., None] * value, 3, axis=2), mask


def share_kept(matrix, mask, size):
    """By brute force, of every pixel of the object."""
    y, x = np.nonzero(mask)
    u, v = matrix[:, :2] @ np.stack([x, y]) + matrix[:, 2:]
    return ((u > -0.5) & (v > -0.5) & (u < size[0] - 0.5) & (v < size[1] - 0.5)).mean()


@pytest.mark.parametrize("radius", [2, 18, 58])
def test_crop_keeps_the_stated_share_of_the_object(radius):
    np.random.seed(0)
    _, mask = pair(centre=(0.7, 0.5), radius=radius)
    wild = dict(size=(64, 64), scale=(1, 3), rotate=30, crop=True)
    keeping, free = RandomWarp(**wild, keep_object=0.75), RandomWarp(**wild)
    kept, zooms, lost = [], [], 0
    for _ in range(150):
        matrix = keeping.matrix(120, 160, mask)
        kept.append(share_kept(matrix, mask, (64, 64)))
        zooms.append(np.sqrt(np.linalg.det(matrix[:, :2]) * 160 * 120 / 64**2))
        lost += share_kept(free.matrix(120, 160, mask), mask, (64, 64)) < 0.75
    # Points are float32, so a pixel on the very edge may count otherwise.
    assert min(kept) > 0.745
    assert lost > 30  # what it guards against does happen
    assert len(set(np.round(zooms, 3))) > 40  # and it is still random


def test_crop_of_an_image_without_object_is_any_crop():
    np.random.seed(0)
    empty = np.zeros((120, 160), np.uint8)
    warp = RandomWarp(size=(64, 64), scale=(2, 2), rotate=0, translate=0, crop=True, keep_object=1)
    corners = np.array([warp.matrix(120, 160, empty)[:, 2] for _ in range(200)])
    # The window of half the side reaches from one border of the image to the other.
    low, high = corners.min(0), corners.max(0)
    assert np.all(high > -4) and np.all(low < -60) and np.all(high < 1) and np.all(low > -66)


@pytest.mark.parametrize(("key", "code"), [("flip", 1), ("flip_vertical", 0)])
def test_flips_inside_the_warp_are_flips(key, code):
    image, mask = pair()
    rng = np.random.default_rng(0)
    image = image // 2 + rng.integers(0, 99, image.shape, dtype=np.uint8)
    warp = RandomWarp(size=(160, 120), **STILL, **{key: 1.0})
    out = warp(pair_results(image, mask))
    assert np.array_equal(out["img"], cv2.flip(image, code))
    assert np.array_equal(out["gt_seg_map"], cv2.flip(mask, code))
    np.random.seed(0)
    half = RandomWarp(size=(160, 120), **STILL, **{key: 0.5})
    turned = [not np.array_equal(half(pair_results(image, mask))["img"], image) for _ in range(60)]
    assert 15 < sum(turned) < 45


@pytest.mark.parametrize("scale", [0.1, 0.7, 1.0, 1.6])
def test_beyond_the_border_lies_the_mirrored_image(scale):
    np.random.seed(0)
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8), (0, 0), 2)
    mask = (image[..., 0] > 127).astype(np.uint8)
    warp = RandomWarp(size=(96, 64), scale=(scale, scale), rotate=25, translate=0.2)
    for _ in range(10):
        state = np.random.get_state()
        out = warp(pair_results(image, mask))
        np.random.set_state(state)
        matrix = warp.matrix(50, 70)
        for source, result, method in (
            (image, out["img"], cv2.INTER_LINEAR),
            (mask, out["gt_seg_map"], cv2.INTER_NEAREST),
        ):
            expected = cv2.warpAffine(
                source, matrix, (96, 64), flags=method, borderMode=cv2.BORDER_REFLECT
            )
            difference = np.abs(result.astype(int) - expected)
            # Coordinates are rounded to 1/32 pixel: another origin may round the other way.
            assert difference.mean() < 0.6 and (difference > 12).mean() < 0.01


@pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]])
def test_mirrored_views_are_packed_and_coloured_as_they_look(view):
    image = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)[view]
    packed = PackCODInputs()(pair_results(image, np.zeros((9, 7), np.uint8)))
    assert np.array_equal(packed["inputs"].numpy().transpose(1, 2, 0), image)
    still = RandomColour(0, 0, 0, 0)({"img": image})["img"]
    assert np.abs(still.astype(int) - image).max() <= 1


def test_blur_spreads_as_far_as_told_and_keeps_brightness():
    np.random.seed(0)
    image = np.zeros((61, 61, 3), np.uint8)
    image[30, 30] = 255
    image = np.repeat(np.repeat(image, 3, 0), 3, 1)  # bright enough to be measured after blurring
    y, x = np.mgrid[:183, :183] - 91.0
    lines = 0
    for _ in range(20):
        out = RandomBlur(sigma=(4, 4), prob=1)({"img": image.copy()})["img"][..., 0].astype(float)
        spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=out.ravel() + 1e-9)
        wide, thin = np.linalg.eigvalsh(spread)[::-1]
        assert wide == pytest.approx(16 + 0.67, rel=0.25)
        lines += thin < 4
    assert 4 < lines < 16  # half of them blur along a line
    grey = np.full((40, 40, 3), 77, np.uint8)
    assert (RandomBlur(prob=1)({"img": grey})["img"] == 77).all()


def test_jpeg_loses_detail_with_quality_but_not_colour():
    np.random.seed(0)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    errors = [
        np.abs(RandomJPEG((q, q), 1)({"img": noise})["img"].astype(int) - noise).mean()
        for q in (20, 60, 95)
    ]
    assert errors[0] > errors[1] > errors[2] > 0
    red = np.tile(np.array([200, 30, 60], np.uint8), (32, 32, 1))
    out = RandomJPEG((60, 60), 1)({"img": red})["img"].astype(int)
    assert out.shape == red.shape and np.abs(out - red).max() < 8


class Pool:
    """One donor: a bright square in a large image."""

    def __init__(self, image, mask):
        self.image, self.mask = image, mask

    def __len__(self):
        return 1

    def read_sample(self, index):
        return self.image, self.mask


def test_pasted_object_is_in_image_and_mask_and_its_truth_is_dropped():
    np.random.seed(0)
    donor = Pool(*pair(240, 320, (0.6, 0.4), 40, value=200))
    for _ in range(20):
        image, mask = pair(value=90)
        results = dict(pair_results(image, mask.copy()), pool=donor)
        out = CopyPaste(prob=1, scale=(0.5, 1.5), match=0, max_overlap=0)(results)
        new = out["gt_seg_map"] & ~mask
        # Relative to its image the donor's disc has a fortieth of 320 x 240 pixels and more.
        relative = new.sum() / new.size / (donor.mask.mean())
        assert 0.2 < relative < 2.6
        assert (out["gt_seg_map"][mask == 1] == 1).all()  # own object not covered
        core = cv2.erode(new, np.ones((7, 7), np.uint8)) == 1
        assert (out["img"][core] > 190).all() and (out["img"][mask == 1] >= 89).mean() > 0.9
        elsewhere = cv2.dilate(out["gt_seg_map"], np.ones((9, 9), np.uint8)) == 0
        assert not out["img"][elsewhere].any()
        assert "gt_mask" not in out
        # Neither the donor nor the arrays that came in were written to.
        assert donor.image.max() == 200 and image.max() == 90


def test_pasted_colours_are_drawn_to_the_background():
    np.random.seed(0)
    donor = Pool(*pair(value=220))
    back = np.full((120, 160, 3), 100, np.uint8)
    means = []
    for match in (0, 0.5, 1):
        results = dict(pair_results(back, np.zeros((120, 160), np.uint8)), pool=donor)
        out = CopyPaste(prob=1, match=match, scale=(1, 1))(results)
        means.append(out["img"][out["gt_seg_map"] == 1].mean())
    assert means[0] > 205 and means[1] == pytest.approx(160, abs=8) and means[2] < 104


def test_nothing_is_pasted_over_most_of_the_object_or_from_an_empty_sample():
    whole = np.ones((40, 40), np.uint8)
    image = np.zeros((40, 40, 3), np.uint8)
    small = np.zeros((40, 40), np.uint8)
    for own, donor_mask in ((whole, whole), (small, small)):
        results = dict(pair_results(image, own), pool=Pool(image + 255, donor_mask))
        out = CopyPaste(prob=1, scale=(1, 1))(results)
        assert not out["img"].any() and "gt_mask" in out


def test_copy_paste_reads_the_data_set_it_is_used_in():
    pipeline = [dict(type="CopyPaste", prob=1.0, max_overlap=1.0), dict(type="PackCODInputs")]
    arguments = dict(length=6, image_size=64, kinds=["figure"])
    pasted = SyntheticCamouflage(**arguments, pipeline=pipeline)
    plain = SyntheticCamouflage(**arguments, pipeline=pipeline[1:])
    np.random.seed(0)
    larger = [
        int(a["data_samples"].target.sum()) > int(b["data_samples"].target.sum())
        for a, b in zip(pasted, plain, strict=True)
    ]
    assert sum(larger) >= 4 and "pool" not in pasted[0]
    with pytest.raises(ValueError, match=r"CopyPaste finds no other samples.*read_sample"):
        CopyPaste(prob=1)(pair_results(*pair()))


def packed(count=3, size=96):
    image, mask = pair(size, size, radius=20)
    return [PackCODInputs()(dict(pair_results(image, mask), stem=str(i))) for i in range(count)]


def test_batches_have_one_size_each_of_those_asked_for():
    np.random.seed(0)
    collate = FUNCTIONS.get("multiscale_collate")
    seen = set()
    for _ in range(20):
        batch = collate(packed(), sizes=(64, 96, 128))
        side = batch["inputs"].shape[-1]
        assert batch["inputs"].shape == (3, 3, side, side) and batch["inputs"].dtype == torch.uint8
        assert batch["targets"].shape == (3, 1, side, side)
        assert ((batch["inputs"][:, :1] > 127) == batch["targets"]).float().mean() > 0.98
        assert {sample.img_shape for sample in batch["data_samples"]} == {(side, side)}
        seen.add(side)
    assert seen == {64, 96, 128}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_model_gets_the_same_from_a_stacked_batch(workers):
    pipeline = [dict(type="PackCODInputs", keep_original=True)]
    data = SyntheticCamouflage(length=5, image_size=64, pipeline=pipeline)
    outputs = []
    for collate in (pseudo_collate, stack_collate):
        loader = DataLoader(data, batch_size=5, collate_fn=collate, num_workers=workers)
        outputs.append(CODDataPreprocessor()(next(iter(loader)), True))
    listed, stacked = outputs
    assert torch.equal(listed["inputs"], stacked["inputs"])
    assert torch.equal(listed["targets"], stacked["targets"])
    for a, b in zip(listed["data_samples"], stacked["data_samples"], strict=True):
        assert torch.equal(a.gt_mask, b.gt_mask) and a.metainfo == b.metainfo


def test_stacking_leaves_unlike_sizes_to_the_preprocessor_and_samples_as_they_were():
    batch = packed(1, 64) + packed(1, 96)
    with pytest.raises(ValueError, match="one batch holds images of sizes"):
        CODDataPreprocessor()(stack_collate(batch), True)
    same = packed(2)
    stack_collate(same)
    assert "target" in same[0]["data_samples"]
    unlabelled = [PackCODInputs()(pair_results(pair(64, 64)[0], None))]
    assert "targets" not in stack_collate(unlabelled)


def test_sizes_must_be_what_the_backbone_divides():
    with pytest.raises(ValueError, match=r"multiples of divisor=32; near \[100\] lie \[96\]"):
        multiscale_collate(packed(), sizes=(96, 100))
    assert multiscale_collate(packed(), sizes=(98,), divisor=14)["inputs"].shape[-1] == 98


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="RandomWarp", keep_object=1.5), r"keep_object=1\.5.*\[0, 1\]"),
        (dict(type="RandomWarp", flip=-1), "flip=-1"),
        (dict(type="RandomBlur", sigma=2), r"sigma=2.*\(low, high\)"),
        (dict(type="RandomBlur", prob=2), "RandomBlur: prob=2"),
        (dict(type="RandomJPEG", quality=(90, 101)), r"quality=\(90, 101\).*\[1, 100\]"),
        (dict(type="CopyPaste", scale=(2, 1)), r"scale=\(2, 1\)"),
        (dict(type="CopyPaste", match=2), "match=2"),
        (dict(type="CopyPast"), "CopyPaste"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)

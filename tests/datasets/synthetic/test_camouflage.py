"""SyntheticCamouflage: deterministic, balanced, camouflaged, and yet solvable."""

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from codmoe.datasets.synthetic import KINDS, SyntheticCamouflage, generate
from codmoe.datasets.synthetic.scene import MAX_AREA, MIN_AREA
from codmoe.registry import DATASETS

SIZE = 96
PER_KIND = 24


@pytest.fixture(scope="module")
def samples() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """``PER_KIND`` pairs of image and mask for every kind."""
    dataset = SyntheticCamouflage(length=PER_KIND * len(KINDS), image_size=SIZE, seed=3)
    found = {kind: [] for kind in KINDS}
    for item in dataset:
        found[item["kind"]].append((item["img"], item["gt_mask"]))
    return found


def make(**kwargs) -> SyntheticCamouflage:
    return SyntheticCamouflage(**{"length": 8, "image_size": 64, **kwargs})


@pytest.fixture(scope="module")
def plain() -> SyntheticCamouflage:
    """Eight images that are made once for all tests of this file."""
    return make()


def blur(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a square window, the borders repeated."""
    side = 2 * radius + 1
    return cv2.blur(values.astype(float), (side, side), borderType=cv2.BORDER_REPLICATE)


def ring_around(mask: np.ndarray, radius: int = 8) -> np.ndarray:
    """Pixels outside the mask and at most ``radius`` away from it."""
    return (blur(mask, radius) > 1e-9) & (mask == 0)


def same(a: dict, b: dict) -> bool:
    return np.array_equal(a["img"], b["img"]) and np.array_equal(a["gt_mask"], b["gt_mask"])


def test_item_has_what_pipelines_and_metrics_read():
    item = make(name="Toy")[5]
    assert item["img"].shape == (64, 64, 3) and item["img"].dtype == np.uint8
    assert item["gt_seg_map"].shape == (64, 64) and item["gt_seg_map"].dtype == np.uint8
    assert np.array_equal(item["gt_mask"], item["gt_seg_map"])
    assert item["ori_shape"] == item["img_shape"] == (64, 64)
    assert item["stem"] == "figure_00005" and item["kind"] == "figure"
    assert item["dataset"] == "Toy" and item["img_path"] == item["mask_path"] == ""


def test_same_seed_same_bytes_whatever_the_order_the_length_and_the_cache(plain):
    other, subset = make(length=30, cache=False), make(indices=[5, 2])
    assert all(same(other[index], plain[index]) for index in (7, 0, 3, 7))
    assert len(subset) == 2 and same(subset[0], plain[5])


def test_workers_make_the_same_items(plain):
    dataset = make()
    loader = DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=lambda item: item)
    assert all(same(a, b) for a, b in zip(loader, plain, strict=True))


@pytest.mark.parametrize("other", [{"seed": 1}, {"part": "val"}])
def test_other_seeds_and_parts_are_other_images(plain, other):
    theirs = list(make(**other))
    assert not any(np.array_equal(a["img"], b["img"]) for a in plain for b in theirs)


def test_images_are_the_same_on_every_machine():
    # Small statistics instead of a checksum: a last-bit difference of an FFT may move one pixel.
    image, mask = generate((0, 1, 2), "figure", 64)
    assert int(mask.sum()) == pytest.approx(957, abs=1)
    assert image.mean() == pytest.approx(100.6144, abs=0.01)
    assert image[::16, 8, 1].tolist() == pytest.approx([142, 128, 73, 68], abs=1)
    image, mask = generate((0, 1, 7), "clutter", 64)
    assert int(mask.sum()) == pytest.approx(422, abs=1)
    assert image.mean() == pytest.approx(85.9749, abs=0.01)


def test_cached_items_survive_a_pipeline_that_writes_into_them(plain):
    def spoil(item: dict) -> dict:
        item["img"][:] = 0
        item["gt_seg_map"][:] = 0
        return item

    spoiled = make(pipeline=[spoil])
    # The first access fills the cache, the second reads it.
    assert not spoiled[0]["img"].any() and not spoiled[0]["img"].any()
    spoiled.pipeline.transforms.clear()
    assert same(spoiled[0], plain[0]) and plain[0]["img"].any()


def test_every_prefix_is_balanced():
    dataset = make(length=10)
    kinds = [dataset.get_data_info(i)["kind"] for i in range(10)]
    assert kinds[:4] == list(KINDS) and kinds[4:8] == list(KINDS)
    some = make(kinds=["figure", "ambiguous"])
    assert [some.get_data_info(i)["kind"] for i in range(3)] == ["figure", "ambiguous", "figure"]


@pytest.mark.parametrize("kind", KINDS)
def test_masks(samples, kind):
    for image, mask in samples[kind]:
        assert set(np.unique(mask)) == {0, 1}
        assert MIN_AREA <= mask.mean() <= MAX_AREA
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.mean() < 0.5
        assert image.std() > 8


def test_multiscale_really_varies(samples):
    areas = [mask.mean() for _, mask in samples["multiscale"]]
    assert min(areas) < 0.03 and max(areas) > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_object_has_the_colours_of_its_surroundings(samples, kind):
    gaps = []
    for image, mask in samples[kind]:
        inside, ring = image[mask == 1].astype(float), image[ring_around(mask)].astype(float)
        gaps.append(np.abs(inside.mean(0) - ring.mean(0)) / ring.std(0))
    # An object pasted from another image scores above 1 here.
    assert np.mean(gaps) < 0.4


def structure_contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """How differently the gradients point inside and outside, in deviations of the outside."""
    gy, gx = np.gradient(image.mean(2))
    energy = blur(gx * gx + gy * gy, 6) + 1
    features = np.stack([blur(gx * gx - gy * gy, 6), 2 * blur(gx * gy, 6)]) / energy
    inside, outside = features[:, mask == 1], features[:, ring_around(mask, 20)]
    gap = inside.mean(1) - outside.mean(1)
    return float(np.sqrt((gap**2).sum() / (outside.var(1).sum() + 1e-6)))


@pytest.mark.parametrize("kind", KINDS)
def test_direction_of_texture_betrays_the_object(samples, kind):
    true = [structure_contrast(image, mask) for image, mask in samples[kind]]
    # The same masks laid over the next image: what chance alone gives.
    images = [image for image, _ in samples[kind]]
    wrong = [
        structure_contrast(image, mask)
        for image, (_, mask) in zip(images[1:] + images[:1], samples[kind], strict=True)
    ]
    assert np.median(true) > 1.3 * np.median(wrong)


def test_visibility_sets_objects_off(samples):
    def offset(pairs):
        greys = [(image.mean(2), mask > 0) for image, mask in pairs]
        return np.mean([abs(g[m].mean() / g[~m].mean() - 1) for g, m in greys])

    hidden = [samples[kind][i] for i in range(6) for kind in KINDS]
    seen = SyntheticCamouflage(length=24, image_size=SIZE, seed=3, visibility=0.7)
    lighter = [(item["img"], item["gt_mask"]) for item in seen]
    assert offset(hidden) < 0.15 < 0.2 < offset(lighter)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(hidden, lighter, strict=True))


def test_built_from_a_config():
    cfg = {"type": "SyntheticCamouflage", "length": 3, "image_size": 64, "lazy_init": True}
    assert len(DATASETS.build(cfg)) == 3
    with pytest.raises(ValueError, match="image_size"):
        DATASETS.build({"type": "SyntheticCamouflage", "img_size": 64})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ["figur"]}, "kinds.*did you mean 'figure'"),
        ({"kinds": []}, "kinds is empty"),
        ({"length": 0}, "length=0"),
        ({"image_size": 31}, "image_size=31"),
        ({"seed": -1}, "seed=-1"),
        ({"visibility": 1.5}, r"visibility=1.5; it must lie in \[0, 1\]"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)
    if "image_size" in wrong:
        with pytest.raises(ValueError, match=message):
            generate(0, "figure", 31)

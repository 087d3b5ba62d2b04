"""CompositeCamouflage: objects that lie where the mask says, in photographs that no part shares."""

import cv2
import numpy as np
import pytest

from codmoe.datasets.synthetic import KINDS
from codmoe.datasets.synthetic.camouflage import generator
from codmoe.datasets.synthetic.composite import (
    BLENDS,
    CUTOUTS,
    FILLS,
    CompositeCamouflage,
    compose,
    paste,
    poisson_blend,
)
from codmoe.engine.config import load_config
from codmoe.registry import DATASETS


def photo(seed=0, shape=(120, 160)):
    """Coloured noise of several scales, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.random((n, n, 3)), shape[::-1], interpolation=cv2.INTER_CUBIC)
        for n in (4, 16, 60)
    ]
    return (np.clip(np.mean(layers, axis=0), 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        cv2.imwrite(str(folder / f"{i}.png"), photo(i))
    return folder


def make(photo_dir, **changes):
    return CompositeCamouflage(photo_dir, **{"length": 8, "image_size": 64, **changes})


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_object_and_its_shadow_change_the_photograph(fill, blend, kind):
    # A photograph of one colour: what differs from it was painted.
    plain = np.full((100, 140, 3), (90, 120, 60), np.uint8)
    image, mask = compose(generator(4), kind, plain, 96, fill=fill, blend=blend)
    assert image.shape == (96, 96, 3) and image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    if kind == "clutter":
        return  # distractors lie everywhere
    far = cv2.dilate(mask, np.ones((31, 31), np.uint8)) == 0
    assert far.any() and np.abs(image[far].astype(int) - (90, 120, 60)).max() <= 3


@pytest.mark.parametrize("blend", BLENDS)
def test_object_lies_where_the_mask_says(blend):
    moved = []
    for seed in range(12):
        # The square of a photograph that is no larger than it: the background is known.
        back = photo(seed, (96, 96))
        image, mask = compose(generator(seed), "figure", back, 96, blend=blend)
        change = np.abs(image.astype(int) - back).sum(2)
        moved.append(change[mask == 1].mean() / max(change[mask == 0].mean(), 1))
    assert np.median(moved) > 3


def test_object_has_the_colours_of_what_it_covers():
    gaps = []
    for seed in range(12):
        back = photo(seed, (96, 96)) // 2 + np.array([60, 20, 0], np.uint8)
        # Without shading along a rim, which changes colours on purpose.
        image, mask = compose(generator(seed), "ambiguous", back, 96, fill=FILLS[seed % 2])
        inside = mask == 1
        gaps.append(np.abs(image[inside].mean(0) - back[inside].mean(0)).mean() / back.std())
    # In deviations of the photograph.
    assert np.mean(gaps) < 0.15


def test_poisson_blending_keeps_gradients_and_takes_the_borders_colours():
    under = photo(0, (64, 64)).astype(float) / 2
    inside = np.zeros((64, 64), bool)
    inside[10:40, 20:64] = True  # up to the border
    out = poisson_blend(under + 70, under, inside)
    # The same gradients with other colours give the same picture back.
    assert np.abs(out - under).mean() < 3 and np.array_equal(out[~inside], np.rint(under[~inside]))


def test_objects_at_the_border_can_be_blended():
    for seed in range(30):
        image, mask = compose(generator(seed), "multiscale", photo(), 64, blend="poisson")
        assert image.shape == (64, 64, 3) and mask.any()


def test_items_follow_from_seed_part_and_index(photos):
    first, second = list(make(photos, length=4)), make(photos, length=3, cache=False)
    for index in (2, 0):
        assert np.array_equal(first[index]["img"], second[index]["img"])
    assert first[1]["kind"] == "figure" and first[1]["dataset"] == "Composite"
    for other in ({"seed": 1}, {"part": "val"}):
        theirs = list(make(photos, length=4, **other))
        assert not any(np.array_equal(a["img"], b["img"]) for a in first for b in theirs)


def test_parts_share_no_photograph(photos):
    fractions = {"experts": 0.5, "val": 0.3, "test": 0.2}
    parts = {p: set(make(photos, part=p, fractions=fractions).photos) for p in fractions}
    assert [len(parts[p]) for p in fractions] == [5, 3, 2]
    assert len(set.union(*parts.values())) == 10
    assert len(make(photos).photos) == 10


def thing(width=30, at=(20, 40)):
    """A bright upright ellipse of stripes before a dark background, (120, 160), and its mask."""
    mask = np.zeros((120, 160), np.uint8)
    cv2.ellipse(mask, (at[1] + 40, at[0] + 40), (width // 2, 30), 0, 0, 360, 1, -1)
    stripes = np.where(np.arange(160) % 8 < 4, 250, 180)[None, :, None]
    return np.where(mask[..., None] > 0, stripes, 20).astype(np.uint8) * np.ones(3, np.uint8), mask


def test_what_is_cut_out_lies_where_the_mask_says():
    plain = np.full((120, 160, 3), (90, 120, 60), np.uint8)
    sizes = []
    for seed in range(10):
        image, mask = paste(generator(seed), "salient", plain, None, thing(), 96)
        assert image.shape == (96, 96, 3) and set(np.unique(mask)) == {0, 1}
        change = np.abs(image.astype(int) - (90, 120, 60)).sum(2)
        near = cv2.dilate(mask, np.ones((5, 5), np.uint8))
        assert (
            change[near == 0].max() == 0 and change[cv2.erode(mask, np.ones((3, 3))) > 0].min() > 0
        )
        sizes.append(mask.mean())
    assert max(sizes) > 2 * min(sizes)


def test_a_camouflaged_object_has_the_colours_of_what_it_covers():
    gaps = {}
    for kind in ("camouflaged", "salient"):
        gaps[kind] = []
        for seed in range(8):
            back = photo(seed)
            image, mask = paste(generator(seed), kind, back, None, thing(), 96)
            gaps[kind].append(np.abs(image[mask == 1].mean(0) - image[mask == 0].mean(0)).mean())
    assert np.mean(gaps["camouflaged"]) < 0.5 * np.mean(gaps["salient"])


def test_what_a_border_cut_off_lies_at_a_border():
    donor = thing(at=(70, 40))
    assert donor[1][-1].any()
    for seed in range(6):
        _, mask = paste(generator(seed), "salient", photo(), None, donor, 96)
        assert mask[-2:].any() and not mask[0].any()


def test_the_background_s_own_object_is_part_of_the_truth():
    own = np.ones((120, 160), np.uint8)
    for mask in (
        paste(generator(0), "camouflaged", photo(), own, thing(), 64)[1],
        compose(generator(0), "figure", photo(), 64, own=own)[1],
    ):
        assert mask.all()
    # What is seen of it: the same object is added to either half of the photograph.
    own[:, 80:] = 0
    images, masks = zip(
        *(compose(generator(3), "figure", photo(), 64, own=each) for each in (own, 1 - own, None)),
        strict=True,
    )
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    assert (masks[0] | masks[1]).all() and np.array_equal(masks[0] & masks[1], masks[2])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(10):
        image, mask = thing(20 + i)
        cv2.imwrite(str(folder / f"images/{i}.png"), image // 2 + photo(i, (120, 160)) // 2)
        if i < 9:
            cv2.imwrite(str(folder / f"masks/{i}.png"), mask * 255)
    return folder


def test_pairs_make_three_kinds(pairs):
    data = make("images", mask_dir="masks", data_root=pairs, length=6)
    assert [sample["kind"] for sample in data] == [*CUTOUTS, *CUTOUTS]
    assert all(sample["gt_seg_map"].any() for sample in data) and len(data.donors) == 9
    again = make("images", mask_dir="masks", data_root=pairs, length=9, cache=False)
    assert np.array_equal(data[3]["img"], again[3]["img"])
    part = make("images", mask_dir="masks", data_root=pairs, fractions={"a": 0.5}, part="a")
    assert len(part.photos) == 5 and set(part.donors) <= set(part.photos)
    with pytest.raises(ValueError, match="'whole' needs objects of two photographs or more"):
        make(pairs / "images", kinds="whole")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fill": "foto"}, "fill='foto'.*'photo'"),
        ({"blend": "alpha"}, "blend='alpha'; valid names: feather, poisson"),
        (
            {"part": "test", "fractions": {"test": 0.01}},
            "part='test' is left without any of the 10",
        ),
        ({"part": "tset", "fractions": {"test": 0.5}}, "'tset'"),
        ({"kinds": "figur"}, "'figure'"),
        ({"visibility": 0.5}, "visibility is of SyntheticCamouflage"),
        ({"photo_dir": "."}, r"photo_dir: .* holds no photograph"),
        ({"photo_dir": "none"}, "photo_dir"),
    ],
)
def test_mistakes_are_named(photos, tmp_path, monkeypatch, wrong, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(**{"photo_dir": photos, **wrong})


def test_the_shipped_config_builds(photos):
    cfg = load_config("experts/joint_composite")
    for part in ("train", "val", "test"):
        node = cfg[f"{part}_dataloader"].dataset
        node.get("datasets", {}).get("Composite", node).update(photo_dir=str(photos), image_size=64)
        sample = DATASETS.build(node)[0]
        assert sample["data_samples"].kind == "clutter"

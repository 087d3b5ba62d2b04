import numpy as np
import pytest

from codmoe.visualization.overlays import PANEL, TINT, cutout, outline, overlay, side_by_side


@pytest.fixture
def image():
    return np.full((60, 90, 3), 100, np.uint8)


@pytest.fixture
def mask():
    mask = np.zeros((60, 90), np.uint8)
    mask[20:40, 30:60] = 1
    return mask


def test_the_object_is_tinted_and_outlined_and_nothing_else_changes(image, mask):
    drawn = overlay(image, mask, alpha=0.5)
    np.testing.assert_array_equal(drawn[30, 45], np.round((np.float32(TINT) + 100) / 2))
    assert (drawn[30, 30] > 200).all()
    np.testing.assert_array_equal(drawn[:15], image[:15])
    lined = outline(image, mask)
    np.testing.assert_array_equal(lined[30, 45], image[30, 45])
    assert (lined > 200).any() and (lined < 50).any()  # seen on black and on white
    assert (image == 100).all()


def test_nothing_and_everything_found(image, mask):
    np.testing.assert_array_equal(overlay(image, np.zeros_like(mask)), image)
    assert not np.array_equal(overlay(image, np.ones_like(mask))[30, 45], image[30, 45])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_a_cut_out_is_half_transparent_at_the_threshold(image, threshold):
    probability = np.linspace(0, 1, 60 * 90, dtype=np.float32).reshape(60, 90)
    found = cutout(image, probability, threshold)
    np.testing.assert_array_equal(found[..., :3], image)
    alpha = found[..., 3].ravel().astype(int)
    assert (np.diff(alpha) >= 0).all()
    assert alpha[np.abs(probability.ravel() - threshold).argmin()] == pytest.approx(128, abs=2)
    if 0 < threshold < 1:
        assert alpha[0] == 0 and alpha[-1] == 255


def test_side_by_side_shows_what_each_expert_says(image, mask):
    maps = {"a": np.zeros((15, 22), np.float32), "b": np.ones((15, 22), np.float32)}
    one = side_by_side(image, mask, mask.astype(np.float32), maps, {"b": 1.0})
    other = side_by_side(image, mask, mask.astype(np.float32), maps, {"a": 0.5, "b": 0.5})
    assert one.shape == other.shape and one.dtype == np.uint8
    full = 8 + 3 * (PANEL + 8)  # image, map and overlay; then the experts, one over the other
    middle, column = one.shape[0] // 2, range(8 + PANEL // 2, full, PANEL + 8)
    assert [one[middle, x].tolist() for x in column[:2]] == [[100] * 3, [255] * 3]
    assert one[middle, column[2]].tolist() == overlay(image, mask)[30, 45].tolist()
    above, below = (one[middle + shift, full + 20] for shift in (-middle // 2, middle // 2))
    assert above.tolist() == [0] * 3 and below.tolist() == [255] * 3
    assert not np.array_equal(one[:, full:], other[:, full:])  # the weights are in the heading


@pytest.mark.parametrize("size", [(300, 20), (20, 300), (1, 1)])
def test_side_by_side_takes_any_shape_and_number_of_experts(size):
    flat = np.zeros(size, np.uint8)
    sheets = [
        side_by_side(np.dstack([flat] * 3), flat, flat * 0.0, dict.fromkeys("abcde"[:n], flat), {})
        for n in (1, 2, 5)
    ]
    assert len({sheet.shape[0] for sheet in sheets}) == 1
    assert sheets[1].shape[1] < sheets[2].shape[1]  # two experts stand over each other

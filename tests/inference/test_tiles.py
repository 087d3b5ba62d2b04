import numpy as np
import pytest

from codmoe.inference.inferencer import Inferencer
from codmoe.inference.tiles import OVERLAP, blended, check_tile, needs_tiles, windows


@pytest.mark.parametrize("shape", [(100, 64), (64, 64), (200, 131), (65, 1000)])
def test_shares_add_up_and_neighbours_overlap(shape):
    total, count = np.zeros(shape, np.float32), np.zeros(shape, int)
    starts = set()
    for (rows, columns), share in windows((*shape, 3), 64):
        assert total[rows, columns].shape == share.shape == (64, 64)
        total[rows, columns] += share
        count[rows, columns] += 1
        starts.add(columns.start)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    steps = np.diff(sorted(starts))
    assert all(step <= 64 * (1 - OVERLAP) + 1 for step in steps)
    assert count.min() == 1


def test_the_mean_of_the_logits():
    image = np.random.default_rng(0).integers(1, 254, (150, 210, 3), dtype=np.uint8)
    sizes = []

    def predict(pieces):
        sizes.append(len(pieces))
        return [piece[..., 0] / np.float32(255) for piece in pieces]

    found = blended(image, 64, np.full((8, 8), 0.25, np.float32), predict, batch_size=4)
    odds = np.sqrt(image[..., 0] / (255.0 - image[..., 0]) / 3)
    np.testing.assert_allclose(found, odds / (1 + odds), atol=1e-5)
    assert found.dtype == np.float32 and max(sizes) == 4


def test_one_tile_that_covers_all_is_the_untiled_result(weights, inferencer, folder):
    tiled = Inferencer(checkpoint=weights, device="cpu", batch_size=2, tile=90)
    for one, other in zip(inferencer(folder), tiled(folder), strict=True):
        # Batches of one and of two are summed in another order.
        np.testing.assert_allclose(one.probability, other.probability, atol=5e-3)
    assert needs_tiles((31, 90), 64) and not needs_tiles((31, 90), 90)
    assert not needs_tiles((31, 90), None)


def test_larger_images_are_seen_in_parts_too(weights, folder):
    tiled = Inferencer(checkpoint=weights, device="cpu", batch_size=2, tile=64)
    (found,) = tiled(folder / "ü.png", experts=True)
    assert found.probability.shape == (31, 90) and set(found.expert_maps) == {"sinet", "pranet"}
    (whole,) = Inferencer(checkpoint=weights, device="cpu")(folder / "ü.png")
    assert np.abs(found.probability - whole.probability).max() > 1e-3
    assert found.weights == pytest.approx(whole.weights, abs=1e-4)
    assert found.side_by_side().shape[1] > 3 * 360


def test_a_tile_is_large_enough():
    with pytest.raises(ValueError, match="tile=10: give the side"):
        check_tile(10)

"""How unlike experts err: wrong pixels, not hard images."""

from itertools import combinations

import numpy as np
import pytest
import torch

from codmoe.evaluation.diversity import diversity, pairwise


def test_correlation_is_that_of_wrong_pixels():
    rng = np.random.default_rng(0)
    truth, masks = rng.random((9, 7)) > 0.6, rng.random((3, 9, 7)) > 0.5
    found = pairwise(torch.from_numpy(masks), torch.from_numpy(truth)).numpy()
    wrong = (masks != truth).reshape(3, -1)
    for column, (i, j) in enumerate(combinations(range(3), 2)):
        iou = (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()
        expected = [iou, np.corrcoef(wrong[i], wrong[j])[0, 1]]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-12)


def test_experts_that_err_in_other_places_of_the_same_hard_images_are_unlike():
    """Pearson's r of their IoUs is 1 here: both find hard images hard."""
    figures, ious = [], []
    for missed in (1, 2, 4):
        truth = torch.ones(1, 10, dtype=torch.bool)
        masks = truth.repeat(2, 1)[:, None].clone()
        masks[0, 0, :missed] = masks[1, 0, -missed:] = False
        figures.append(pairwise(masks, truth).numpy())
        ious.append(1 - missed / 10)
    found, pairs = diversity(["a", "b"], figures, float(np.mean(ious)))
    assert found["error_correlation"] < 0
    assert found["disagreement_over_error"] == pytest.approx(2)
    assert pairs["error_correlation"] == {"a-b": pytest.approx(found["error_correlation"])}


@pytest.mark.parametrize("value", [False, True])
def test_masks_without_errors_or_pixels_have_figures(value):
    truth = torch.full((3, 4), value)
    figures = pairwise(truth.repeat(2, 1, 1), truth)
    assert figures.tolist() == [[1.0], [0.0]]
    assert diversity(["a", "b"], figures, 1.0)[0]["disagreement_over_error"] == 0
    assert diversity(["a"], figures[:, :0], 1.0) == ({}, {})

import numpy as np
import pytest
import torch

from codmoe.evaluation.measures import batch_measures, iou_and_dice
from codmoe.evaluation.measures.histogram import PLATEAU, THRESHOLDS, best_threshold


def test_iou_at_every_threshold():
    rng = np.random.default_rng(0)
    maps = [rng.random((20, 31), np.float32) ** 2, np.zeros((9, 9), np.float32)]
    truths = [(rng.random((20, 31)) > 0.7).astype(np.uint8), np.zeros((9, 9), np.uint8)]
    found = batch_measures([torch.from_numpy(m) for m in maps], truths, full=False)
    for at in (0, 30, 127, 200, 254):
        cut = maps[0] > THRESHOLDS[at]
        iou, _ = iou_and_dice(torch.from_numpy(cut.astype(np.float32)), truths[0])
        assert found[0]["by_threshold"][at] == pytest.approx(iou, abs=1e-6)
    assert found[1]["by_threshold"].tolist() == [1.0] * 255  # nothing there, nothing found


def test_of_equally_good_thresholds_the_nearest_to_one_half():
    curve = np.zeros(255)
    curve[20:60] = 0.7
    curve[58] += PLATEAU / 2
    assert best_threshold([curve]) == THRESHOLDS[59]
    assert best_threshold([np.ones(255), curve - curve]) == 0.5
    other = np.zeros(255)
    other[200] = 1
    assert best_threshold([curve, other]) == THRESHOLDS[200]

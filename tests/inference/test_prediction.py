import numpy as np
import pytest


def test_what_a_prediction_says_of_itself(inferencer, folder):
    (found,) = inferencer(folder / "b.png")
    found.probability = np.zeros((50, 70), np.float32)
    assert (found.box, found.share, found.confidence) == (None, 0.0, None)
    found.probability[10:20, 30:45] = 0.75
    assert found.box == (30, 10, 45, 20) and found.share == pytest.approx(150 / 3500)
    assert found.confidence == pytest.approx(0.75)
    assert found.overlay().shape == found.outline().shape == (50, 70, 3)
    with pytest.raises(ValueError, match="predict with experts=True"):
        found.side_by_side()
    found.path = None
    with pytest.raises(ValueError, match="neither path nor image"):
        found.overlay()

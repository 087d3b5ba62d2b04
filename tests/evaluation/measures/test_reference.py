import sys

import numpy as np
import pytest

from codmoe.evaluation import CODMetric, image_measures


def test_without_pysodmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "py_sod_metrics", None)
    prob, gt = np.full((4, 5), 0.2), np.zeros((4, 5))
    assert image_measures(prob, gt)["IoU"] == 1
    with pytest.raises(ValueError, match=r"pip install 'codmoe\[pysodmetrics\]'"):
        image_measures(prob, gt, backend="pysodmetrics")
    with pytest.raises(ValueError, match="needs PySODMetrics"):
        CODMetric(backend="pysodmetrics")

"""Outlines of the synthetic objects."""

import numpy as np
import pytest

from codmoe.datasets.synthetic.camouflage import generator
from codmoe.datasets.synthetic.shapes import SHAPES, silhouette


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_cover_about_the_area_asked_for(shape):
    areas = [(silhouette(generator(s), 96, 0.1, shape) > 0).mean() for s in range(20)]
    assert 0.06 < np.mean(areas) < 0.14

"""Light, shadows and blades of a scene."""

import numpy as np
import pytest

from codmoe.datasets.synthetic.camouflage import generator
from codmoe.datasets.synthetic.scene import MIN_AREA, Piece, Scene, cast_shadow, daylight
from codmoe.datasets.synthetic.shapes import silhouette

SIZE = 96


def test_blades_hide_parts_of_the_object_but_never_most_of_it():
    cut = 0
    for seed in range(60):
        scene = Scene(generator(seed), SIZE)
        depth = silhouette(generator(seed, 1), SIZE, 0.1)
        scene.add(depth, Piece(1.2, 1.3, rim=0.4))
        whole = scene.mask.copy()
        scene.occlude(MIN_AREA)
        assert not (scene.mask & ~whole).any()
        assert scene.mask.sum() >= 0.6 * whole.sum()
        cut += scene.mask.sum() < whole.sum()
    assert cut > 40


def test_shadow_falls_away_from_the_sun():
    light = np.ones((SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE] - 47.5
    cast_shadow(light, 10 - np.hypot(x, y), (1.0, 0.0), 0.1, 0.3)
    dark = 1 - light
    # The sun stands at the right: the shadow lies ten pixels to the left.
    assert (dark * x).sum() / dark.sum() == pytest.approx(-10, abs=0.5)
    assert light.min() == pytest.approx(0.7, abs=0.01) and light[:, -1].min() == 1


def test_light_differs_from_image_to_image():
    means = [daylight(generator(seed), SIZE) for seed in range(60)]
    spread = [light.max() / light.min() for light in means]
    assert min(light.min() for light in means) > 0.3
    assert min(spread) < 1.4 and max(spread) > 1.8

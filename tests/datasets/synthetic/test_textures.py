"""Textures of every style."""

import numpy as np

from codmoe.datasets.synthetic.camouflage import generator
from codmoe.datasets.synthetic.textures import STYLES, make_texture


def test_every_style_has_a_direction_and_is_periodic():
    seen = set()
    for seed in range(40):
        seen.add(STYLES[int(generator(seed).random() * len(STYLES))])
        tone = make_texture(generator(seed), 96).field.real
        # Longer along x than across, whatever the style: turning it shows.
        assert np.abs(np.diff(tone, axis=0)).mean() > 1.15 * np.abs(np.diff(tone, axis=1)).mean()
        # The jump over the border is one like any other.
        assert np.array_equal(tone[0], tone[-1]) and np.array_equal(tone[:, 0], tone[:, -1])
    assert seen == set(STYLES)

"""Arguments of the transforms that are out of their range."""

import pytest

from codmoe.registry import TRANSFORMS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="RandomWarp", size=448), r"size=448.*takes tuple\[int, int\]"),
        (dict(type="RandomWarp", scale=(1.5, 0.5)), r"scale=\(1\.5, 0\.5\).*0 < low <= high"),
        (dict(type="RandomWarp", scale=(0, 1)), r"scale=\(0, 1\).*\(low, high\)"),
        (dict(type="RandomWarp", rotate=-5), "rotate=-5.*at least 0"),
        (dict(type="RandomWarp", keep_object=1.5), r"keep_object=1\.5.*\[0, 1\]"),
        (dict(type="RandomWarp", flip=-1), "flip=-1"),
        (dict(type="RandomWarp", rotation=5), "'rotate'"),
        (dict(type="RandomColour", hue=0.7), r"hue=0\.7.*\[0, 0\.5\]"),
        (dict(type="RandomColor"), "RandomColour"),
        (dict(type="RandomBlur", sigma=2), r"sigma=2.*takes tuple\[float, float\]"),
        (dict(type="RandomBlur", prob=2), "RandomBlur: prob=2"),
        (dict(type="RandomJPEG", quality=(90, 101)), r"quality=\(90, 101\).*\[1, 100\]"),
        (dict(type="CopyPaste", scale=(2, 1)), r"scale=\(2, 1\)"),
        (dict(type="CopyPaste", match=2), "match=2"),
        (dict(type="CopyPast"), "CopyPaste"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)

import numpy as np
import pytest
from matplotlib.image import imread

from codmoe.visualization.curves import CURVES, save_curves


def curves(level=0.5):
    threshold = np.linspace(1, 0, 256).tolist()
    y = (level * np.sin(np.linspace(0, 3, 256))).tolist()
    return {"threshold": threshold, "Precision": y, "Recall": threshold[::-1], "Fm": y, "Em": y}


def test_each_kind_draws_every_method_and_data_set(tmp_path):
    names = ["_a", "b $x$ & co", "c"]
    results = {name: {d: curves(0.3 * i + 0.2) for d in "xyzuv"} for i, name in enumerate(names)}
    del results["c"]["y"]
    for kind in CURVES:
        path = save_curves(results, tmp_path / "new" / f"{kind}.svg", kind=kind)
        text = path.read_text()
        # One group per line drawn: each panel has its methods; the legend has each once more.
        drawn = sum(text.count(f"stroke: {colour}") for colour in ("#1f77b4", "#ff7f0e", "#2ca02c"))
        assert drawn == 14 + 3
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_raster_and_the_old_file_is_kept(tmp_path):
    results = {"a": {"x": curves()}, "b": {"x": curves(0.9)}}
    for _ in range(2):
        path = save_curves(results, tmp_path / "PR.png")
    one = imread(path).shape
    assert len(list(tmp_path.iterdir())) == 2
    more = {name: {d: curves() for d in "xyz"} for name in results}
    wide = imread(save_curves(more, tmp_path / "F.png", kind="F")).shape
    assert wide[1] > 2.5 * one[1]


def test_gaps_are_gaps(tmp_path):
    holed = curves()
    holed["Fm"][3] = float("nan")
    assert save_curves({"a": {"x": holed}}, tmp_path / "F.pdf", kind="F").stat().st_size > 1000


@pytest.mark.parametrize(
    ("results", "kind", "words"),
    [
        ({"a": {"x": curves()}}, "ROC", "no curve 'ROC'; valid names: E, F, PR"),
        ({"a": {"x": {"threshold": [1, 0]}}}, "F", "No result has the curves threshold and Fm"),
        ({}, "PR", "No result has"),
        ({"a": {"x": {"threshold": [1, 0], "Fm": [1]}}}, "F", "2 values and Fm 1; they must be"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, results, kind, words):
    with pytest.raises(ValueError, match=words):
        save_curves(results, tmp_path / "x.png", kind=kind)
    assert list(tmp_path.iterdir()) == []

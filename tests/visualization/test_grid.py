import numpy as np
import pytest
import torch
from matplotlib.image import imread

from codmoe.visualization import GridRow, save_grid
from codmoe.visualization.grid import check_picture

NAMES = ["sinet", "pranet"]


def row(height=30, width=41, **changes):
    gt = torch.zeros(height, width, dtype=torch.uint8)
    gt[8:20, 10:30] = 1
    values = {
        "image": np.full((height, width, 3), 128, np.uint8),
        "gt": gt,
        "expert_probs": {"sinet": 0.9 * gt, "pranet": torch.rand(height, width)},
        "mixture": 0.8 * gt.numpy(),
        "weights": {"sinet": 1.0},
        "title": "COD10K-CAM-1-Aquatic-13-Pipefish-772" * 2,
    }
    return GridRow(**{**values, **changes})


def test_rows_of_different_shapes(tmp_path):
    rows = [row(), row(61, 33), row(expert_probs={"sinet": torch.zeros(30, 41)})]
    path = save_grid(rows, tmp_path / "new" / "grid.png", expert_names=NAMES)
    picture = imread(path)
    assert picture.shape[1] > 5 * 1.5 * 200
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_vector_format_one_expert_and_the_old_file_is_kept(tmp_path):
    one = row(expert_probs={"sinet": torch.zeros(30, 41)})
    for _ in range(2):
        path = save_grid([one], tmp_path / "grid.svg", expert_names=["sinet"])
    assert path.read_text().lstrip().startswith("<?xml")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": np.zeros((30, 41, 3))}, "uint8 array"),
        ({"image": np.zeros((30, 41, 4), np.uint8)}, "4 channels"),
        ({"image": np.zeros((20, 41, 3), np.uint8)}, "bring them to one size"),
        ({"weights": {"ujsc": 1.0}}, "not in expert_names: ujsc"),
        ({"mixture": np.zeros((5, 5))}, "the same \\(H, W\\)"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        save_grid([row(**changes)], tmp_path / "grid.png", expert_names=NAMES)
    assert list(tmp_path.iterdir()) == []


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        save_grid([], tmp_path / "grid.png", expert_names=NAMES)


@pytest.mark.parametrize("name", ["a.py", "a", "a.pth"])
def test_a_file_that_is_named_like_no_picture_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is named like no picture; give it .png"):
        check_picture(tmp_path / name)
    check_picture(tmp_path / "a.PNG")

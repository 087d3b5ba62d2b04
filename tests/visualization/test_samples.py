import numpy as np
import pytest
import torch
from matplotlib.image import imread

from codmoe.datasets.transforms import PackCODInputs, pair_results
from codmoe.visualization.samples import outlined, save_samples, unpacked

YELLOW = np.array([255, 220, 40])


def item(height=60, width=80, **meta):
    mask = np.zeros((height, width), np.uint8)
    mask[20:40, 30:60] = 1
    image = np.full((height, width, 3), 90, np.uint8)
    return PackCODInputs()(dict(pair_results(image, mask), stem="COD10K-CAM-" + "x" * 40, **meta))


def yellow(picture):
    return np.abs(picture[..., :3].astype(int) - YELLOW).max(2) < 40


def test_outline_lies_on_the_border_of_the_mask_and_nowhere_else():
    image, mask, _ = unpacked(item())
    picture = outlined(image, mask)
    assert picture.shape == (270, 360, 3)
    y, x = np.nonzero(yellow(picture))
    # The mask's box, four and a half times as large.
    assert abs(y.min() - 90) <= 4 and abs(y.max() - 180) <= 4
    assert abs(x.min() - 135) <= 4 and abs(x.max() - 270) <= 4
    assert (picture[110:160, 155:250] == 90).all() and (picture[:80] == 90).all()
    # The border of a hole is drawn too.
    mask[28:32, 40:50] = 0
    assert yellow(outlined(image, mask)[120:150, 175:230]).any()


def test_titles_tell_stem_and_area():
    title = unpacked(item())[2]
    assert title.startswith("COD10K-CAM-") and title.endswith("12.5%") and len(title) < 32
    unlabelled = PackCODInputs()(pair_results(np.zeros((9, 9, 3), np.uint8), None))
    assert unpacked(unlabelled)[1] is None and "no mask" in unpacked(unlabelled)[2]


def test_grid_of_unlike_sizes_is_written_whole_and_the_old_one_kept(tmp_path):
    items = [item(), item(120, 70), item(), item(64, 64)]
    for _ in range(2):
        path = save_samples(items, tmp_path / "new" / "grid.png", columns=3)
    assert len(list(path.parent.iterdir())) == 2
    picture = (imread(path) * 255).astype(int)
    assert picture.shape[1] == pytest.approx(150 * 3 * 1.86, abs=16)
    # Four outlines, in a grid of two rows.
    assert yellow(picture).sum() > 100
    half = picture.shape[0] // 2
    assert yellow(picture[:half]).any() and yellow(picture[half:]).any()


def test_images_normalised_by_the_pipeline_are_stretched_back():
    packed = item()
    packed["inputs"] = (packed["inputs"].float() - 90) / 50
    packed["inputs"][:, 0, 0] = 2.0
    image = unpacked(packed)[0]
    assert image.dtype == np.uint8 and image[0, 0].tolist() == [255] * 3 and image[9, 9, 0] == 0


@pytest.mark.parametrize("wrong", [torch.zeros(3), dict(img=np.zeros((4, 4, 3)))])
def test_unpacked_samples_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match="PackCODInputs"):
        save_samples([wrong], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="at least one sample"):
        save_samples([], tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []

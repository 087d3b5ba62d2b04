import numpy as np
import pytest
from matplotlib.image import imread

from codmoe.datasets import DatasetGroup
from codmoe.datasets.synthetic import SyntheticCamouflage
from codmoe.visualization.dataset_page import HEAT, collect_attributes, save_attributes


class Corner:
    """Samples whose object is the left upper quarter; the last has none."""

    name = "corner"

    def __len__(self):
        return 4

    def get_data_info(self, index):
        return {}

    def read_sample(self, index):
        rng = np.random.default_rng(index)
        mask = np.zeros((40, 60), np.uint8)
        if index < 3:
            mask[:20, :30] = 1
        return rng.integers(0, 255, (40, 60, 3), dtype=np.uint8), mask


def test_what_is_collected_is_what_the_masks_say():
    one = collect_attributes(Corner())["corner"]
    assert one.values["area"].tolist() == [0.25, 0.25, 0.25, 0] and one.empty == 1
    assert one.sides.tolist() == [[60, 40]] * 4
    half = HEAT // 2
    assert one.heat[: half - 1, : half - 1].min() == pytest.approx(0.75)
    assert one.heat[half + 1 :].max() == one.heat[:, half + 1 :].max() == 0


def test_page_of_a_group(tmp_path):
    small = dict(length=8, image_size=48)
    group = DatasetGroup(
        dict(
            first=SyntheticCamouflage(**small),
            second=SyntheticCamouflage(**small, part="val", kinds=["figure"]),
            corner=Corner(),
        )
    )
    found = collect_attributes(group, progress=True)
    assert list(found) == ["first", "second", "corner"]
    assert found["first"].kinds == dict(clutter=2, figure=2, multiscale=2, ambiguous=2)
    assert found["second"].kinds == dict(figure=8)
    path = save_attributes(found, tmp_path / "page.png")
    picture = imread(path)
    assert picture.shape[:2] == (1066, 1430) and (picture[..., :3] < 0.5).any()
    save_attributes({"corner": found["corner"]}, tmp_path / "page.png")
    assert len(list(tmp_path.iterdir())) == 2  # the old page is kept


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data set: list has no read_sample\(index\)"):
        collect_attributes([1, 2])
    with pytest.raises(ValueError, match="5 data sets; one page holds 1 to 4"):
        save_attributes(dict.fromkeys("abcde"), tmp_path / "page.png")

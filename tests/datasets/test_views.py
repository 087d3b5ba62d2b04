import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from codmoe.datasets import FixedViews, stack_collate
from codmoe.datasets.synthetic import SyntheticCamouflage

PIPELINE = [
    dict(type="RandomWarp", size=(48, 48), scale=(0.75, 1.25), rotate=15, flip=0.5),
    dict(type="RandomColour"),
    dict(type="PackCODInputs"),
]


def views(count=3, **kwargs):
    inner = dict(type="SyntheticCamouflage", length=4, image_size=48, pipeline=PIPELINE)
    return FixedViews(inner, views=count, **kwargs)


def picture(dataset, index):
    return dataset[index]["inputs"]


def test_a_view_comes_back_and_differs_from_the_others():
    dataset = views()
    seen = {}
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for index in (2, 0, 2):
            item = dataset[index]
            assert item["data_samples"].cache_key == ("train", epoch % 3, index)
            first = seen.setdefault((epoch % 3, index), item)
            assert torch.equal(item["inputs"], first["inputs"])
            assert torch.equal(item["data_samples"].target, first["data_samples"].target)
    assert not torch.equal(seen[0, 2]["inputs"], seen[1, 2]["inputs"])
    assert not torch.equal(picture(views(seed=1), 2), seen[0, 2]["inputs"])


def test_other_random_numbers_go_on_as_if_nothing_had_been_drawn():
    dataset = views()
    np.random.seed(3), torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(3), torch.manual_seed(3)
    dataset[1]
    assert np.random.rand() == expected[0] and torch.equal(torch.rand(1), expected[1])


def test_workers_that_outlive_an_epoch_hear_of_the_next():
    dataset = views()
    loader = DataLoader(
        dataset, 2, num_workers=1, persistent_workers=True, collate_fn=stack_collate
    )
    for epoch in range(3):
        dataset.set_epoch(epoch)
        keys = [s.cache_key for batch in loader for s in batch["data_samples"]]
        assert keys == [("train", epoch, index) for index in range(4)]
        assert torch.equal(next(iter(loader))["inputs"][1], picture(dataset, 1))


def test_settings_and_what_it_passes_on():
    with pytest.raises(ValueError, match="views=0"):
        views(0)
    inner = SyntheticCamouflage(length=3, image_size=48, pipeline=PIPELINE)
    dataset = FixedViews(inner, part="val")
    assert len(dataset) == 3 and dataset.get_data_info(1)["kind"] == inner.get_data_info(1)["kind"]
    assert dataset[1]["data_samples"].cache_key[0] == "val"

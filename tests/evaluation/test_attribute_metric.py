import numpy as np
import pytest
import torch

from codmoe.evaluation.attributes import image_attributes
from codmoe.registry import METRICS
from codmoe.structures import CODDataSample


def sample(stem, dataset="CAMO", **meta):
    element = CODDataSample(metainfo={"stem": stem, "dataset": dataset, **meta})
    element.gt_mask = torch.zeros(30, 40, dtype=torch.uint8)
    element.gt_mask[10:20, 5:25] = 1
    return element


def test_attributes_by_data_set_and_stem():
    metric = METRICS.build({"type": "AttributeMetric"})
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    samples = [sample("a"), sample("a"), sample("b", "NC4K", kind="texture")]
    metric.process({"inputs": [image] * 3}, samples)
    assert metric.evaluate(3) == {}
    expected = image_attributes(pixels, samples[0].gt_mask.numpy())
    assert metric.table["CAMO"] == {"a": expected, "a#2": expected}
    assert metric.table["NC4K"] == {"b": expected | {"kind": "texture"}}


def test_an_image_of_another_size_is_brought_to_the_masks():
    metric = METRICS.build({"type": "AttributeMetric"})
    grey = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    grey[:, 21:43, 8:40] = 200  # the object, on the network's grid
    metric.process({"inputs": torch.stack([grey, grey.roll(20, 1)])}, [sample("a"), sample("b")])
    metric.evaluate(2)
    right, misplaced = (metric.table["CAMO"][stem] for stem in "ab")
    assert right["contrast"] > 1.5 * misplaced["contrast"] > 0
    assert right["area"] == misplaced["area"] == pytest.approx(200 / 1200)


def test_a_missing_truth_is_named():
    bare = sample("a")
    del bare.gt_mask
    with pytest.raises(ValueError, match="'a' has no `gt_mask`; load masks"):
        METRICS.build({"type": "AttributeMetric"}).process({}, [bare])

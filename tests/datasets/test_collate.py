"""Batches: stacked as the model would, or of a size drawn for each."""

import numpy as np
import pytest
import torch
from folders import disc
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

from codmoe.datasets import PackCODInputs, multiscale_collate, stack_collate
from codmoe.datasets.synthetic import SyntheticCamouflage
from codmoe.datasets.transforms import pair_results
from codmoe.models.preprocessor import CODDataPreprocessor


def packed(count=3, size=96):
    image, mask = disc(size, size, radius=20)
    return [PackCODInputs()(dict(pair_results(image, mask), stem=str(i))) for i in range(count)]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_model_gets_the_same_from_a_stacked_batch(workers):
    pipeline = [dict(type="PackCODInputs", keep_original=True)]
    data = SyntheticCamouflage(length=5, image_size=64, pipeline=pipeline)
    outputs = []
    for collate in (pseudo_collate, stack_collate):
        loader = DataLoader(data, batch_size=5, collate_fn=collate, num_workers=workers)
        outputs.append(CODDataPreprocessor()(next(iter(loader)), True))
    listed, stacked = outputs
    assert torch.equal(listed["inputs"], stacked["inputs"])
    assert torch.equal(listed["targets"], stacked["targets"])
    for a, b in zip(listed["data_samples"], stacked["data_samples"], strict=True):
        assert torch.equal(a.gt_mask, b.gt_mask) and a.metainfo == b.metainfo


def test_stacking_leaves_unlike_sizes_to_the_preprocessor_and_samples_as_they_were():
    batch = packed(1, 64) + packed(1, 96)
    with pytest.raises(ValueError, match="one batch holds images of sizes"):
        CODDataPreprocessor()(stack_collate(batch), True)
    same = packed(2)
    stack_collate(same)
    assert "target" in same[0]["data_samples"]
    unlabelled = [PackCODInputs()(pair_results(disc(64, 64)[0], None))]
    assert "targets" not in stack_collate(unlabelled)


def test_batches_have_one_size_each_of_those_asked_for():
    np.random.seed(0)
    collate = FUNCTIONS.get("multiscale_collate")
    seen = set()
    for _ in range(20):
        batch = collate(packed(), sizes=(64, 96, 128))
        side = batch["inputs"].shape[-1]
        assert batch["inputs"].shape == (3, 3, side, side) and batch["inputs"].dtype == torch.uint8
        assert batch["targets"].shape == (3, 1, side, side)
        assert ((batch["inputs"][:, :1] > 127) == batch["targets"]).float().mean() > 0.98
        assert {sample.img_shape for sample in batch["data_samples"]} == {(side, side)}
        seen.add(side)
    assert seen == {64, 96, 128}


def test_sizes_must_be_what_the_backbone_divides():
    with pytest.raises(ValueError, match=r"multiples of divisor=32; near \[100\] lie \[96\]"):
        multiscale_collate(packed(), sizes=(96, 100))
    assert multiscale_collate(packed(), sizes=(98,), divisor=14)["inputs"].shape[-1] == 98

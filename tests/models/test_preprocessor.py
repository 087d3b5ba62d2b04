import pytest
import torch

from codmoe.models import CODDataPreprocessor
from codmoe.structures import CODDataSample


def sample(target=True):
    s = CODDataSample(metainfo=dict(stem="a"))
    s.gt_mask = torch.ones(9, 9, dtype=torch.uint8)
    if target:
        s.target = torch.ones(1, 8, 8)
    return s


def test_normalises_bytes_as_imagenet_does():
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    out = CODDataPreprocessor()(dict(inputs=[image, image], data_samples=[sample(), sample()]))
    assert out["inputs"].shape == (2, 3, 8, 8) and out["inputs"].dtype == torch.float32
    assert out["inputs"].abs().max() < 0.01
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    result = CODDataPreprocessor()(dict(inputs=white))["inputs"]
    torch.testing.assert_close(result[0, :, 0, 0], expected, atol=1e-3, rtol=1e-3)


def test_targets_are_stacked_when_all_have_one():
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2
    out = CODDataPreprocessor()(dict(inputs=images, data_samples=[sample(), sample()]))
    assert out["targets"].shape == (2, 1, 8, 8) and out["targets"].dtype == torch.float32
    out = CODDataPreprocessor()(dict(inputs=images, data_samples=[sample(), sample(False)]))
    assert "targets" not in out and len(out["data_samples"]) == 2
    assert "targets" not in CODDataPreprocessor()(dict(inputs=images))


def test_images_of_different_sizes_are_told():
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(ValueError, match="Resize"):
        CODDataPreprocessor()(dict(inputs=images))


def test_leaves_nothing_in_the_checkpoint():
    assert CODDataPreprocessor().state_dict() == {}

"""Parts in a form that ONNX has, held against what they replace."""

import pytest
import torch

from codmoe import ModelLevelMoE
from codmoe.inference.export.replacements import for_onnx, mix_stably, pool_to
from codmoe.models.combiners import mix_probabilities
from codmoe.models.routers.evidence import FrequencyBranch


@pytest.mark.parametrize("old, new", [(21, 14), (24, 16), (10, 7), (28, 14), (16, 14), (5, 5)])
def test_gathered_pools(old, new):
    x = torch.randn(2, 3, old, old + 3)
    for kind, pool in (("mean", "adaptive_avg_pool2d"), ("max", "adaptive_max_pool2d")):
        expected = getattr(torch.nn.functional, pool)(x, (new, new))
        assert torch.allclose(pool_to(x, (new, new), kind), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (256, 224), (128, 128)])
def test_the_spectrum_by_matrices(size):
    model = ModelLevelMoE("resnet10t", experts=dict(fpn=dict(type="FPNExpert", channels=8)))
    model.router = FrequencyBranch((), 8)
    other = for_onnx(model, size).router
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 5 - 2
    batch = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    expected = model.router.statistics(batch)
    assert torch.allclose(other.statistics(batch), expected, atol=2e-3)
    assert expected.std() > 1


def test_mixing_stably():
    maps = torch.tensor([0.0, 3.0, -90.0, 200.0, -2000.0]).view(1, 5, 1, 1).repeat(3, 1, 1, 1)
    maps = torch.cat([maps, maps.flip(1), maps], dim=2)[:, :, :2].reshape(3, 5, 2, 1)
    log_weights = torch.full((3, 5, 1, 1), 0.2).log()
    assert torch.allclose(mix_stably(maps, log_weights), mix_probabilities(maps, log_weights))

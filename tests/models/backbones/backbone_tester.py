"""What every backbone must pass."""

import math

import torch


def check_contract(backbone, size, n=2):
    images = torch.randn(n, 3, *size)
    assert all(side % backbone.size_divisor == 0 for side in size), "the test's own size is wrong"
    pyramid = backbone(images)
    assert len(pyramid) == len(backbone.channels) == 4
    for level, channels, stride in zip(pyramid, backbone.channels, (4, 8, 16, 32), strict=True):
        assert level.shape == (n, channels, *(math.ceil(side / stride) for side in size))
        assert torch.isfinite(level).all()
    loss = sum(level.square().mean() for level in pyramid)
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in backbone.body.parameters())
    return pyramid

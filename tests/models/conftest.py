"""Miniatures that every test of the model shares."""

import pytest
import torch
from miniature import MINIATURES, SMALL_BODY

from codmoe.models import ModelLevelMoE
from codmoe.models.routers import Router

MINIATURE_ROUTER = dict(type="EvidenceRouter", width=16)


class ForcedRouter(Router):
    """Scores each image as the test tells it to: ``logits`` is (N, E)."""

    def __init__(self, logits, *, expert_names, top_k=2):
        super().__init__(in_channels=(1, 1, 1, 1), expert_names=expert_names, top_k=top_k)
        self.logits = torch.nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def score(self, images, pyramid):
        return self.logits[: len(images)]


# On a shared machine, threads that wait for each other cost more than miniatures have to compute.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def make_model():
    """``make_model(**kwargs)``: the four experts in miniature on a small pvt_v2_b0."""
    body = dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY)

    def make(**kwargs):
        defaults = dict(backbone=body, experts=MINIATURES)
        if len({n for n, c in kwargs.get("experts", MINIATURES).items() if c}) > 1:
            defaults["router"] = MINIATURE_ROUTER
        torch.manual_seed(0)
        return ModelLevelMoE(**{**defaults, **kwargs})

    return make


@pytest.fixture
def force():
    """``force(model, logits, top_k)``: the model's router says ``logits`` from now on."""

    def apply(model, logits, top_k=2):
        model.router = ForcedRouter(logits, expert_names=model.expert_names, top_k=top_k)
        return model

    return apply


@pytest.fixture
def batch():
    """``batch(n, h, w)``: normalised images and ground truth with a rectangle in each."""

    def make(n=2, height=64, width=64):
        generator = torch.Generator().manual_seed(n * 1000 + height + width)
        images = torch.randn(n, 3, height, width, generator=generator)
        targets = torch.zeros(n, 1, height, width)
        for i in range(n):
            targets[i, :, height // 4 : height // 2 + 4 * i, width // 3 : width // 2 + 8] = 1
        return images, targets

    return make

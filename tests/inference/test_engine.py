from copy import deepcopy
from itertools import combinations

import pytest
import torch
from recorded_work import RecordingPreparer
from torch.nn.modules.batchnorm import _BatchNorm

from codmoe.inference import engine as engine_module
from codmoe.inference.engine import build_engine
from codmoe.models.routers import FixedRouter
from codmoe.models.routers.base import Router
from codmoe.registry import MODELS

TOLERANCE = 1e-4
"""Of a probability, in float32."""
NAMES = ("pranet", "sinet", "ujsc", "zoomnet")
MODEL = dict(
    type="ModelLevelMoE",
    backbone=dict(type="TimmPyramid", name="pvt_v2_b0"),
    experts=dict(
        pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
        sinet=dict(type="SINetExpert", channels=8),
        ujsc=dict(type="UJSCExpert", channels=8, confidence_channels=8),
        zoomnet=dict(type="ZoomNetExpert", channels=8),
    ),
    router=dict(type="EvidenceRouter", width=16),
    top_k=2,
)
SMALL = dict(batches=(1, 2, 4), groups=(1, 2, 3))


class ByBrightness(Router):
    """Which two experts depends on how bright an image is."""

    def score(self, images, pyramid):
        angle = 40 * images.mean((1, 2, 3)) + 0 * pyramid[0].float().mean((1, 2, 3))
        return torch.stack([torch.sin(angle * f + f) for f in (1, 2, 3, 5)], dim=1)


def build(**changes):
    torch.manual_seed(0)
    model = MODELS.build({**MODEL, **changes})
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # as if trained
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = None
    with torch.no_grad():
        model.train().mixture(torch.randn(4, 3, 64, 64), dense=True)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    model = build()
    model.router = ByBrightness(
        in_channels=model.backbone.channels, expert_names=model.expert_names, top_k=2
    )
    return model


@pytest.fixture(params=["eager", "recorded"])
def preparer(request, monkeypatch):
    """The engine as it runs on the CPU, and with graphs that are recorded and repeated."""
    if request.param == "recorded":
        monkeypatch.setattr(engine_module, "Preparer", lambda *_: RecordingPreparer())
    return request.param


def eager(model, images, **options):
    with torch.no_grad():
        return model.mixture(images, **options)


def difference(a, b):
    assert a.shape == b.shape
    return (a.sigmoid() - b.sigmoid()).abs().max().item()


def test_mixed_routes_padded_groups_and_larger_batches_give_the_eager_result(model, preparer):
    images = torch.randn(7, 3, 70, 64)
    engine = build_engine(model, **SMALL)
    expected, decision, _ = eager(model, images)
    assert len({tuple(sorted(pair)) for pair in decision.indices.tolist()}) > 2
    for _ in range(2):  # prepared, and again with another order of what was prepared
        logits, chosen, _ = engine.mixture(images)
        assert torch.equal(chosen.indices, decision.indices)
        assert torch.allclose(chosen.weights, decision.weights, atol=1e-4)
        assert difference(logits, expected) < TOLERANCE
    flipped = images.flip(0)
    assert difference(engine(flipped), eager(model, flipped)[0]) < TOLERANCE
    if preparer == "recorded":
        assert not any(piece.reason for piece in engine.pieces), engine.report
        assert engine.prepare.replays > 10


def test_every_route_gives_the_eager_result(model, preparer):
    routes = [pair for k in (1, 2) for pair in combinations(NAMES, k)]
    images = torch.randn(2, 3, 64, 64)
    engine = build_engine(model, **SMALL)
    for route in routes * 2:
        fixed = deepcopy(model)
        fixed.router = FixedRouter(
            in_channels=model.backbone.channels,
            expert_names=model.expert_names,
            weights=dict.fromkeys(route, 1.0),
        )
        assert difference(engine(images, names=route), eager(fixed, images)[0]) < TOLERANCE, route


@pytest.mark.parametrize("combiner", ["PixelCombiner", "LogitCombiner"])
def test_a_combiner_that_learns_and_reads_confidence(combiner, preparer):
    model = build(combiner=dict(type=combiner, learn_temperature=True))
    torch.nn.init.constant_(model.combiner.log_temperature, 0.3)
    torch.nn.init.normal_(model.router.fuse[-1].weight)
    if combiner == "PixelCombiner":
        torch.nn.init.normal_(model.combiner.outer[-1].weight)
    images = torch.randn(3, 3, 64, 64)
    assert difference(build_engine(model, **SMALL)(images), eager(model, images)[0]) < TOLERANCE

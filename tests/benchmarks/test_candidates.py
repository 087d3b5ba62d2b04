from copy import deepcopy

import pytest
import torch
from torch import nn

from benchmarks.candidates import FORMS, improve, options_of, put_beside
from codmoe.compiled.buffers import Buffers
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.prepared import CompiledMoE
from codmoe.registry import MODELS

MODEL = dict(
    type="ModelLevelMoE",
    backbone=dict(type="TimmPyramid", name="pvt_v2_b0"),
    experts=dict(
        pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
        sinet=dict(type="SINetExpert", channels=8),
        ujsc=dict(type="UJSCExpert", channels=8, confidence_channels=8),
    ),
    router=dict(type="EvidenceRouter", width=20),  # no channels of it divide by 8
    top_k=2,
)
CHANGES = dict(
    tiled=("backbone",),
    shifted=("backbone",),
    patches=("backbone",),
    views=("backbone",),
    padded=("router",),
    edges=("router",),
    halves=("router",),
    heads=("experts.pranet", "experts.sinet", "experts.ujsc"),
    attention=("experts.ujsc",),
)


@pytest.fixture(scope="module")
def copies():
    torch.manual_seed(0)
    model = MODELS.build(MODEL)
    nn.init.normal_(model.router.fuse[-1].weight)
    for module in model.experts["ujsc"].position:
        nn.init.ones_(module.gamma)
    return PartCopies(model.eval(), "fp32", "channels_last").modules


def outputs(copies):
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        pyramid = copies["backbone"](images)
        experts = {k: m(images, [pyramid]).logits for k, m in copies.items() if "experts." in k}
        router = copies["router"](images, pyramid).logits
        return dict(backbone=pyramid[-1], router=router, **experts)


@pytest.mark.parametrize("name", FORMS)
def test_a_candidate_changes_a_part_and_not_what_it_computes(copies, name):
    expected, better = outputs(copies), deepcopy(copies)
    for module in better.values():
        improve(module, [name])
    for part, got in outputs(better).items():
        scale = expected[part].std()
        torch.testing.assert_close(got / scale, expected[part] / scale, rtol=1e-4, atol=1e-4)
        same = _kinds(better[part]) == _kinds(copies[part])
        if name not in ("views", "edges", "halves", "attention"):  # methods and precisions
            assert same == (part not in CHANGES[name]), part


def _kinds(module):
    return [type(m).__name__ for m in module.modules()]


def test_a_router_beside_the_backbone_chooses_the_same(monkeypatch):
    monkeypatch.setattr(Buffers, "start", Buffers.start)  # to be put back
    torch.manual_seed(0)
    model = MODELS.build(MODEL).eval()
    nn.init.normal_(model.router.fuse[-1].weight)
    images = torch.randn(3, 3, 64, 64)
    expected, decision, _ = CompiledMoE(model).mixture(images)
    beside = CompiledMoE(model)
    put_beside(beside)
    for _ in range(2):
        got, chosen, _ = beside.mixture(images)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(chosen.logits, decision.logits)
    assert "backbone + router" in beside.pieces[0].name


def test_options_of_the_compiler_are_those_of_torch():
    names = ("1x1", "descent", "autotune", "tiled")
    with torch._inductor.config.patch(options_of(names)):
        assert torch._inductor.config.conv_1x1_as_mm

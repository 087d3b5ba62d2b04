import pytest
import torch
from miniature import NARROW_MODEL
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from codmoe.evaluation.cost import count_flops, measure_cost, summarise
from codmoe.models.moe import ModelLevelMoE


@pytest.fixture(scope="module")
def model():
    return ModelLevelMoE(**NARROW_MODEL)


def test_a_convolution_by_hand():
    conv = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    flops, out = count_flops(conv, torch.zeros(1, 3, 32, 48))
    assert out.shape == (1, 8, 16, 24)
    assert flops == 2 * (3 * 5 * 5) * 8 * 16 * 24
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert count_flops(grouped, torch.zeros(1, 8, 10, 10))[0] == 2 * 9 * 8 * 10 * 10


def test_attention_is_counted():
    """The fused kernels of the CPU are unknown to torch's counter, which passes over them."""
    n, d = 10, 16
    layer = nn.TransformerEncoderLayer(d, 2, 4 * d, batch_first=True)
    projections = 2 * n * d * (3 * d + d) + 2 * n * d * 4 * d * 2
    attention = 2 * n * n * d * 2
    assert count_flops(layer, torch.zeros(1, n, d))[0] == projections + attention


def test_counting_leaves_the_module_as_it_was(model):
    model.train()
    frozen = next(model.backbone.parameters())
    frozen.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summarise(model, 64)
    assert model.training and model.backbone.training and not frozen.requires_grad
    others = list(model.parameters())[1:]
    assert all(parameter.requires_grad for parameter in others)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    frozen.requires_grad_(True)


def test_parts_sum_to_the_whole(model):
    summary = summarise(model, 64)
    rows = {row["part"]: row for row in summary["parts"]}
    assert list(rows) == [
        "backbone",
        "router",
        "pranet",
        "sinet",
        "zoomnet",
        "zoomnet backbone at 0.5×",
        "zoomnet backbone at 1.5×",
        "combiner",
    ]
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert summary["total"]["parameters"] == everything
    assert summary["total"]["flops"] == sum(row["flops"] for row in rows.values())
    # The whole model in one go, all experts run: the same operations.
    image = torch.zeros(1, 3, 64, 64)
    whole, _ = count_flops(model, lambda: model.mixture(image, dense=True))
    assert summary["total"]["flops"] == whole
    assert rows["router"]["flops"] > 0


def test_a_route_costs_what_a_run_costs(model):
    summary = summarise(model, 64)
    route, active = summary["route_flops"], summary["active_parameters"]
    image = torch.randn(1, 3, 64, 64)
    seen = set()
    for bias in ([9.0, 5.0, 0.0], [0.0, 5.0, 9.0], [9.0, 0.0, 5.0]):
        with torch.no_grad():
            model.router.fuse[-1].bias.copy_(torch.tensor(bias))
        seen.add(count_flops(model, image)[0])
    assert min(seen) == route["min"] and max(seen) == route["max"]
    assert sum(seen) / 3 == pytest.approx(route["mean"])
    assert route["min_experts"] == ["pranet", "sinet"]

    sizes = {n: sum(p.numel() for p in e.parameters()) for n, e in model.experts.items()}
    everything = summary["total"]["parameters"]
    assert active["max"] == everything - min(sizes.values())
    assert active["min"] == everything - max(sizes.values())


def test_sources_cost_what_runs_for_them(model):
    summary = summarise(model, 64)
    parts = {row["part"]: row for row in summary["parts"]}
    two, other = ("pranet", "sinet"), ("sinet", "zoomnet")
    cost = measure_cost(model, (64, 64), {two: 3, other: 1}, repeats=1)["sources"]
    assert list(cost) == ["pranet", "sinet", "zoomnet", "uniform", "mixture"]
    backbone, route = parts["backbone"], summary["route_flops"]
    for key in ("parameters", "flops"):
        assert cost["sinet"][key] == backbone[key] + parts["sinet"][key]
    assert cost["mixture"]["parameters"] == summary["total"]["parameters"]
    # All experts without the router.
    without = summary["total"]["flops"] - parts["router"]["flops"]
    assert cost["uniform"]["flops"] == without
    with torch.no_grad():
        model.router.fuse[-1].bias.copy_(torch.tensor([0.0, 5.0, 9.0]))
    dearer, _ = count_flops(model, torch.zeros(1, 3, 64, 64))
    assert cost["mixture"]["flops"] == (3 * route["min"] + dearer) // 4
    assert all(row["ms"] > 0 for row in cost.values())


def test_a_part_that_needs_values_is_run_for_real(model, capsys):
    shapes_alone = summarise(model, 64)

    def look(module, inputs):
        bool(inputs[0].sum() > 0)

    handle = model.experts.pranet.register_forward_pre_hook(look)
    try:
        assert summarise(model, 64) == shapes_alone
    finally:
        handle.remove()
    assert capsys.readouterr().err.startswith("running for real")


@pytest.mark.parametrize("kind", ["RandomRouter", "UniformRouter"])
def test_other_routers(kind):
    top_k = dict(top_k=None) if kind == "UniformRouter" else {}
    summary = summarise(ModelLevelMoE(**{**NARROW_MODEL, "router": dict(type=kind), **top_k}), 64)
    if kind == "UniformRouter":
        assert summary["top_k"] == 3
        assert summary["route_flops"]["min"] == summary["total"]["flops"]


def test_scales_of_the_backbone(model):
    """0.5× and 1.5× of 128 pixels are runs of the backbone at 64 and 192."""
    rows = {row["part"]: row["flops"] for row in summarise(model, 128)["parts"]}
    for scale, side in ((0.5, 64), (1.5, 192)):
        alone, _ = count_flops(model.backbone, torch.zeros(1, 3, side, side))
        assert rows[f"zoomnet backbone at {scale:g}×"] == alone


def test_a_scale_that_experts_share_is_counted_once_and_shared_experts_always():
    experts = dict(
        fpn=dict(type="FPNExpert", channels=8),
        sinet=dict(type="SINetExpert", channels=8, input_scale=1.5),
        zoomnet=dict(type="ZoomNetExpert", channels=8),
    )
    changes = dict(experts=experts, router=dict(type="RandomRouter"))
    summary = summarise(ModelLevelMoE(**{**NARROW_MODEL, **changes}), 64)
    flops = {row["part"]: row["flops"] for row in summary["parts"]}
    assert "sinet, zoomnet backbone at 1.5×" in flops
    assert summary["route_flops"]["min_experts"] == ["fpn", "sinet"]
    both = {"fpn", "zoomnet"}
    ever = summarise(
        ModelLevelMoE(**{**NARROW_MODEL, **changes, "shared_experts": ("zoomnet",)}), 64
    )
    assert set(ever["route_flops"]["min_experts"]) == both
    without = flops["sinet"] + flops["sinet, zoomnet backbone at 1.5×"]
    without += flops["zoomnet backbone at 0.5×"] + flops["zoomnet"]
    whole = sum(flops.values()) - without
    expected = whole + flops["sinet"] + flops["sinet, zoomnet backbone at 1.5×"]
    assert summary["route_flops"]["min"] == expected


def test_own_blocks_count_with_their_expert():
    experts = dict(
        fpn=dict(type="FPNExpert", channels=8, input_scale=1.5),
        sinet=dict(type="SINetExpert", channels=8, input_scale=1.5),
    )

    def rows(own):
        changed = dict(experts, sinet=dict(experts["sinet"], own_blocks=own))
        model = ModelLevelMoE(
            **{**NARROW_MODEL, "experts": changed, "router": dict(type="RandomRouter")}
        )
        parts = {row["part"]: row for row in summarise(model, 64)["parts"]}
        return model, parts

    _, shared = rows(0)
    model, own = rows(1)
    ending = model.experts.sinet.backbone
    more, _ = count_flops(
        ending, lambda: ending(model.backbone.begin(torch.zeros(1, 3, 96, 96), 1))
    )
    begun, _ = count_flops(
        model.backbone, lambda: model.backbone.begin(torch.zeros(1, 3, 96, 96), 1)
    )
    assert own["sinet"]["flops"] - shared["sinet"]["flops"] == more - begun
    size = sum(p.numel() for p in ending.parameters())
    assert own["sinet"]["parameters"] - shared["sinet"]["parameters"] == size
    joint = "fpn, sinet backbone at 1.5×"
    assert own[joint]["flops"] == shared[joint]["flops"]
    assert own["fpn"] == shared["fpn"]


def test_a_size_that_does_not_divide_is_refused(model):
    with pytest.raises(ValueError, match="use 96"):
        summarise(model, 100)


def test_the_counter_still_agrees_with_the_plain_one():
    """What `_countable` switches changes nothing where nothing is fused."""
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    x = torch.zeros(1, 3, 9, 9)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as plain:
        conv(x)
    assert count_flops(conv, x)[0] == plain.get_total_flops()

from itertools import combinations

import pytest
import torch

from codmoe.models.dispatch import Passes, PyramidBank, routed_rows
from codmoe.structures import RoutingDecision

PAIRS = list(combinations(range(4), 2))


NAMES = ("pranet", "sinet", "ujsc", "zoomnet")  # the alphabetical order of the expert axis


def logits_for(pairs):
    """Scores that make the router choose exactly these experts, one row an image."""
    pairs = [[NAMES.index(e) if isinstance(e, str) else e for e in pair] for pair in pairs]
    logits = torch.full((len(pairs), 4), -9.0)
    for row, pair in enumerate(pairs):
        logits[row, list(pair)] = torch.linspace(1.0, 0.5, len(pair))
    return logits


@pytest.fixture
def counted(make_model):
    """The model, and a list of (part, number of images) of every call."""
    model, calls = make_model().eval(), []
    parts = dict(model.experts, backbone=model.backbone)
    for name, part in parts.items():

        def hook(module, args, name=name):
            calls.append((name, len(args[0]), tuple(args[0].shape[-2:])))

        part.register_forward_pre_hook(hook)
    return model, calls


def test_only_chosen_experts_run_on_their_images(counted, force, batch):
    model, calls = counted
    force(model, logits_for([("sinet", "pranet"), ("pranet", "ujsc"), ("sinet", "pranet")]))
    model(batch(3)[0])
    assert calls == [
        ("backbone", 3, (64, 64)),
        ("pranet", 3, (64, 64)),
        ("sinet", 2, (64, 64)),
        ("ujsc", 1, (64, 64)),
    ]


def test_further_scales_are_made_for_routed_images_only(counted, force, batch):
    model, calls = counted
    force(model, logits_for([("sinet", "pranet"), ("zoomnet", "ujsc"), ("sinet", "pranet")]))
    model(batch(3)[0])
    passes = [c[1:] for c in calls if c[0] == "backbone"]
    assert passes == [(3, (64, 64)), (1, (32, 32)), (1, (96, 96))]
    calls.clear()
    force(model, logits_for([("sinet", "pranet")] * 3))
    model(batch(3)[0])
    assert [c[0] for c in calls] == ["backbone", "pranet", "sinet"]


def test_experts_see_the_images_routed_to_them(make_model, force, batch):
    routes = [("sinet", "pranet"), ("pranet", "ujsc"), ("sinet", "ujsc")]
    model = force(make_model().eval(), logits_for(routes))
    images, seen = batch(3)[0], {}
    for name, expert in model.experts.items():
        expert.register_forward_pre_hook(lambda _, args, n=name: seen.update({n: args[0]}))
    _, _, outputs = model.mixture(images)
    assert torch.equal(seen["sinet"], images[[0, 2]])
    assert torch.equal(seen["ujsc"], images[[1, 2]])
    assert outputs["pranet"].rows.tolist() == [0, 1]
    assert set(outputs) == {"sinet", "pranet", "ujsc"}


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_sparse_equals_dense_on_every_route(make_model, force, batch, top_k):
    model, images = make_model().eval(), batch(6)[0]
    routes = list(combinations(range(4), top_k))
    routes = (routes * 6)[:6]
    force(model, logits_for(routes), top_k)
    with torch.no_grad():
        sparse, decision, _ = model.mixture(images)
        dense, _, outputs = model.mixture(images, dense=True)
    assert [set(row) for row in decision.indices.tolist()] == [set(r) for r in routes]
    assert len(outputs) == 4
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_sparse_equals_dense_where_all_images_agree(make_model, force, batch, pair):
    model, images = make_model().eval(), batch(2)[0]
    force(model, logits_for([pair] * 2))
    with torch.no_grad():
        sparse, dense = model.mixture(images)[0], model.mixture(images, dense=True)[0]
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-4)


def test_gradient_of_sparse_equals_gradient_of_dense(make_model, force, batch):
    images, targets = batch(4)
    model = make_model(mixture_loss=dict(type="StructureLoss")).eval()
    routes = [("sinet", "zoomnet"), ("zoomnet", "pranet"), ("sinet", "pranet")]
    force(model, logits_for([*routes, routes[0]]))
    gradients = []
    for dense in (False, True):
        model.zero_grad()
        model.mixture_loss(model.mixture(images, dense=dense)[0], targets).backward()
        gradients.append(
            {
                n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for n, p in model.named_parameters()
            }
        )
    sparse, dense = gradients
    assert sparse["router.logits"].any() and sparse["backbone.body.patch_embed.proj.weight"].any()
    for name, expected in dense.items():
        scale = expected.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(sparse[name] / scale, expected / scale, atol=1e-3, rtol=0)
        if name.startswith("experts.ujsc"):  # nobody chose it
            assert not expected.any()


def test_rows_of_a_decision():
    indices = torch.tensor([[2, 0], [0, 1], [3, 0]])
    decision = RoutingDecision(None, None, indices, None, tuple("abcd"))
    rows = routed_rows(decision, "abcd")
    assert rows["a"] is None  # the whole batch in order
    assert {n: rows[n].tolist() for n in "bcd"} == {"b": [1], "c": [0], "d": [2]}
    assert set(routed_rows(decision, "abcd")) == set("abcd")
    nobody = RoutingDecision(None, None, indices[:1], None, tuple("abcd"))
    assert set(routed_rows(nobody, "abcd")) == {"a", "c"}


def test_bank_makes_a_scale_once_for_the_whole_batch():
    calls = []

    def backbone(images):
        calls.append(tuple(images.shape))
        return [images]

    images = torch.randn(3, 3, 128, 64)
    passes = Passes(
        begin=lambda x: [x],
        end=lambda begun: backbone(*begun),
        own=lambda own, begun: begun,
        check=lambda pyramid, images: pyramid,
        size_divisor=32,
    )
    bank = PyramidBank(images, passes, pyramid=[images])
    assert bank.get(1.0, None)[0] is images and not calls
    assert torch.equal(bank.get(1.0, torch.tensor([2]))[0], images[2:])
    assert bank.get(0.5, None) is bank.get(0.5, None)
    bank.get(1.5, torch.tensor([0, 2]))
    assert calls == [(3, 3, 64, 32), (2, 3, 192, 96)]
    bank.get(0.1, torch.tensor([0]))
    assert calls[-1] == (1, 3, 32, 32)  # never smaller than the backbone can read


SHARED = dict(
    sinet=dict(type="SINetExpert", channels=16, input_scale=1.5),
    pranet=dict(
        type="PraNetExpert", channels=16, deep_channels=16, shallow_channels=16, input_scale=1.5
    ),
    zoomnet=dict(type="ZoomNetExpert", channels=16),
    fpn=dict(type="FPNExpert", channels=16),
)


@pytest.mark.parametrize(
    ("routes", "images"),
    [
        ([("pranet", "sinet"), ("fpn", "zoomnet"), ("fpn", "sinet"), ("fpn", "zoomnet")], 4),
        ([("pranet", "sinet"), ("fpn", "pranet"), ("fpn", "sinet"), ("fpn", "sinet")], 4),
        ([("pranet", "sinet"), ("pranet", "sinet"), ("fpn", "pranet"), ("pranet", "sinet")], 4),
        ([("pranet", "sinet"), ("fpn", "pranet"), ("fpn", "sinet"), ("pranet", "sinet")], 4),
    ],
)
def test_a_scale_that_experts_share_is_made_once(make_model, force, batch, routes, images):
    names = sorted(SHARED)
    logits = torch.full((len(routes), 4), -9.0)
    for row, pair in enumerate(routes):
        logits[row, [names.index(name) for name in pair]] = torch.tensor([1.0, 0.5])
    model = force(make_model(experts=SHARED).eval(), logits)
    calls = []
    model.backbone.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape)))
    model.double()  # fresh experts blow rounding up
    whole = batch(images)[0].double()
    with torch.no_grad():
        together = model(whole)
        readers = sum(bool({"pranet", "sinet", "zoomnet"} & set(pair)) for pair in routes)
        assert [c for c in calls if c[-1] == 96] == [(readers, 3, 96, 96)]
        for row in range(len(routes)):
            model.router.logits.data[0] = logits[row]
            alone = model(whole[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_maps_lie_on_the_frame_of_the_image(make_model, batch):
    experts = dict(fpn=dict(type="FPNExpert", channels=16, input_scale=0.5))
    model = make_model(experts=experts).eval()
    assert model(batch(2, 64, 96)[0]).shape == (2, 1, 64, 96)


@pytest.mark.parametrize("execution", ["together", "sequential", "checkpoint"])
def test_experts_that_share_a_scale_train(make_model, batch, execution):
    model = make_model(
        experts=SHARED,
        router=dict(type="UniformRouter"),
        expert_loss_weight=1.0,
        expert_execution=execution,
        checkpoint_backbone="extra",
    ).train()
    calls = []
    model.backbone.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[-1]))
    losses = model(*batch(2)[:1], targets=batch(2)[1], mode="loss")
    assert sorted(calls) == [32, 64, 96]
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


VIT = dict(
    type="ViTPyramid",
    name="vit_tiny_patch16_224",
    image_size=64,
    timm_args=dict(depth=4, embed_dim=24, num_heads=3),
    channels=(8, 16, 24, 32),
    layers=(0, 1, 2, 3),
)
BACKBONES = {"pvt_v2_b0": 1, "vit": 2}
OWN = dict(
    fpn=dict(type="FPNExpert", channels=16),
    sinet=dict(type="SINetExpert", channels=16, output_stride=4),
    ujsc=dict(type="UJSCExpert", channels=16, confidence_channels=16, input_scale=0.5),
)


def with_own(make_model, name, **changes):
    """FPN reads the backbone; SINet, at the same scale, and UJSC have last blocks of their own."""
    blocks = dict(sinet=BACKBONES[name], ujsc=BACKBONES[name])
    experts = {n: dict(cfg, own_blocks=blocks.get(n, 0)) for n, cfg in OWN.items()}
    return make_model(backbone=VIT if name == "vit" else name, experts=experts, **changes)


@pytest.mark.parametrize("name", BACKBONES)
def test_own_blocks_begin_as_the_backbones(make_model, batch, name):
    shared = make_model(backbone=VIT if name == "vit" else name, experts=OWN).eval()
    model = with_own(make_model, name).eval()
    extra = set(model.state_dict()) - set(shared.state_dict())
    assert {key.rsplit(".backbone.")[0] for key in extra} == {"experts.sinet", "experts.ujsc"}
    model.load_state_dict(shared.state_dict(), strict=False)
    for ending in (model.experts.sinet.backbone, model.experts.ujsc.backbone):
        ending.load_state_dict(model.backbone.ending(BACKBONES[name]).state_dict())
    images = batch(3, 64, 128)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(images), shared(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_first_blocks_are_run_once_for_a_scale(make_model, force, batch, name):
    model = with_own(make_model, name).eval().double()
    body = model.backbone.body
    calls = dict(first=[], last=[])
    first, last = (
        (body.blocks[1], body.blocks[3]) if name == "vit" else (body.stages_2, body.stages_3)
    )
    first.register_forward_hook(lambda *_: calls["first"].append(1))
    last.register_forward_hook(lambda *_: calls["last"].append(1))
    images = batch(2)[0].double()
    with torch.no_grad():
        force(model, [[2.0, 1.0, -9.0]] * 2)(images)
        assert calls == dict(first=[1], last=[1])
        sparse = force(model, [[2.0, 1.0, -9.0], [-9.0, 1.0, 2.0]])(images)
        assert calls == dict(first=[1] * 3, last=[1] * 2)  # UJSC's half scale, for one image
        alone = force(model, [[-9.0, 1.0, 2.0]])(images[1:])
    torch.testing.assert_close(sparse[1:], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    ("execution", "kept"), [("together", None), ("sequential", "extra"), ("checkpoint", "all")]
)
def test_own_blocks_learn_for_their_expert_alone(make_model, batch, name, execution, kept):
    model = with_own(
        make_model,
        name,
        router=dict(type="UniformRouter"),
        expert_loss_weight=1.0,
        expert_execution=execution,
        checkpoint_backbone=kept,
    ).train()
    losses = model(batch(2)[0], targets=batch(2)[1], mode="loss")
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()
    losses = model(batch(2)[0], targets=batch(2)[1], mode="loss")
    sum(v for k, v in losses.items() if "loss" in k and k.startswith("ujsc")).backward()
    moved = {n.split(".body")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert "experts.ujsc.backbone" in moved and "backbone" in moved
    assert not [n for n in moved if n.startswith(("experts.sinet", "experts.fpn"))]


def test_own_blocks_that_cannot_be(make_model):
    def with_blocks(backbone, **counts):
        experts = {n: dict(OWN[n], own_blocks=count) for n, count in counts.items()}
        make_model(backbone=backbone, experts=experts)

    with pytest.raises(ValueError, match=r"own_blocks differ \(fpn 1, sinet 2\).*same number"):
        with_blocks("pvt_v2_b0", fpn=1, sinet=2)
    with pytest.raises(ValueError, match=r"experts.fpn: own_blocks=4: .*stages.* 1 to 3"):
        with_blocks("pvt_v2_b0", fpn=4)
    with pytest.raises(ValueError, match=r"experts.fpn: backbone.name='efficientnet_b0'.*own_"):
        with_blocks("efficientnet_b0", fpn=1)

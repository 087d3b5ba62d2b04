import math

import pytest
import torch
import torch.nn.functional as F
from miniature import MINIATURES

from codmoe.models import Expert, ModelLevelMoE
from codmoe.models.backbones.base import Backbone
from codmoe.models.combiners import Combiner
from codmoe.models.dispatch import Passes
from codmoe.models.losses import iou_per_image
from codmoe.models.moe import routing_monitors
from codmoe.models.routers.base import Router
from codmoe.registry import MODELS
from codmoe.structures import CODDataSample, ExpertOutput, RoutingDecision

SHARP = dict(type="ProbabilityCombiner", learn_temperature=True)
ROUTING_LOSSES = dict(balance=dict(type="LoadBalanceLoss"), z=dict(type="RouterZLoss"))


def test_the_interface_that_users_were_promised(tmp_path):
    model = ModelLevelMoE(backbone="pvt_v2_b0", num_experts=4, top_k=2)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pred, routing_info = model(images, return_routing_info=True)
        again = model(images)
    assert pred.shape == (2, 1, 64, 64) and torch.equal(pred, again)
    assert routing_info["expert_names"] == ["pranet", "sinet", "ujsc", "zoomnet"]
    assert routing_info["top_k_indices"].shape == routing_info["top_k_weights"].shape == (2, 2)
    assert routing_info["probabilities"].shape == (2, 4)
    millions = {n: sum(p.numel() for p in e.parameters()) / 1e6 for n, e in model.experts.items()}
    assert all(10 < m < 16.5 for m in millions.values())  # narrower levels than PVT-v2-B2's


def test_weights_survive_a_file(make_model, batch, tmp_path):
    model = make_model(combiner=SHARP).eval()
    torch.nn.init.normal_(model.router.fuse[-1].weight)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = make_model(combiner=SHARP).eval()
    images = batch(2)[0]
    before = other(images)
    other.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert torch.equal(other(images), model(images)) and not torch.equal(before, other(images))
    heads = {key.split(".")[0] for key in model.state_dict()}
    assert heads == {"backbone", "experts", "router", "combiner"}
    assert any(key.startswith("experts.sinet.") for key in model.state_dict())


def test_a_stage_hands_over_by_plain_loading(make_model):
    joint = make_model(router=dict(type="UniformRouter")).state_dict()
    assembled = make_model()
    missing, unexpected = assembled.load_state_dict(joint, strict=False)
    assert unexpected == [] and all(key.startswith("router.") for key in missing)
    lone = make_model(experts=dict(ujsc=MINIATURES["ujsc"])).state_dict()
    missing, unexpected = assembled.load_state_dict(lone, strict=False)
    assert unexpected == [] and not any(k.startswith(("backbone", "experts.ujsc")) for k in missing)


@pytest.mark.parametrize("size", [(75, 101), (64, 64), (31, 96), (96, 33)])
def test_any_size_gives_logits_of_that_size(make_model, size):
    model = make_model().eval()
    logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, 1, *size) and torch.isfinite(logits).all()


def test_padding_does_not_move_the_map(make_model):
    model = make_model().eval()
    image = torch.randn(1, 3, 64, 96)
    cropped = image[..., :, :70]
    padded = F.pad(cropped, (0, 26, 0, 0), mode="replicate")
    torch.testing.assert_close(model(cropped), model(padded)[..., :70])


def test_a_plain_vit_carries_the_same_experts():
    backbone = dict(
        type="ViTPyramid",
        name="vit_small_patch14_dinov2",
        image_size=56,
        channels=(8, 16, 24, 32),
        timm_args=dict(depth=2, embed_dim=48, num_heads=3),
    )
    model = ModelLevelMoE(
        backbone, experts=MINIATURES, router=dict(type="EvidenceRouter", width=16)
    )
    for size in ((56, 56), (60, 75)):
        assert model.eval()(torch.randn(2, 3, *size)).shape == (2, 1, *size)


def every_loss(**kwargs):
    return dict(
        mixture_loss=dict(type="StructureLoss"),
        expert_loss_weight=0.3,
        routing_losses={**ROUTING_LOSSES, **kwargs.pop("routing_losses", {})},
        **kwargs,
    )


@pytest.mark.parametrize("dispatch", ["sparse", "dense"])
def test_losses_are_minimised_and_monitors_are_not(make_model, batch, dispatch):
    extra = dict(distil=dict(type="ExpertIoUDistillation")) if dispatch == "dense" else {}
    model = make_model(**every_loss(train_dispatch=dispatch, routing_losses=extra)).train()
    model.progress = 0.5
    assert model.run_state.progress == 0.5
    images, targets = batch(3)
    losses = model(images, targets=targets, mode="loss")
    minimised = {k for k in losses if "loss" in k}
    watched = set(losses) - minimised
    assert {"mixture.loss", "router.loss_balance", "router.loss_z"} <= minimised
    assert {"IoU_mixture", "mutual_information", "share_sinet"} <= watched
    assert all(losses[k].requires_grad for k in minimised)
    assert not any(losses[k].requires_grad for k in watched)
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    oracle = {"IoU_oracle", "IoU_first_choice", "IoU_sinet"}
    assert (oracle <= watched) == (dispatch == "dense")
    assert ("router.loss_distil" in minimised) == (dispatch == "dense")
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, sum(losses[k] for k in minimised))


def test_dense_training_gives_every_parameter_a_gradient(make_model, batch):
    model = make_model(**every_loss(train_dispatch="dense", combiner=SHARP))
    images, targets = batch(2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(images, targets=targets, mode="loss")
    model.parse_losses(losses)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_sparse_training_on_one_image(make_model, batch):
    model = make_model(**every_loss()).train()
    images, targets = batch(1)
    losses = model(images, targets=targets, mode="loss")
    model.parse_losses(losses)[0].backward()


def test_an_experts_loss_counts_its_share_of_the_batch(make_model, force, batch):
    model = make_model(expert_loss_weight=0.5).eval()  # running statistics: rows do not mix
    assert model.expert_names == ("pranet", "sinet", "ujsc", "zoomnet")
    force(model, [[9.0, 8, 0, 0], [9.0, 0, 8, 0], [9.0, 8, 0, 0], [9.0, 8, 0, 0]])
    images, targets = batch(4)
    sparse = model(images, targets=targets, mode="loss")
    _, _, outputs = model.mixture(images)
    own = model.experts["ujsc"].loss(outputs["ujsc"], targets[1:2], 1.0)
    expected = 0.5 * 0.25 * own["structure"]
    torch.testing.assert_close(sparse["ujsc.loss_structure"], expected)
    assert not any(k.startswith("zoomnet.loss") for k in sparse)


def test_training_lowers_the_loss(make_model, batch):
    model = make_model(**every_loss()).train()
    images, targets = batch(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(15):
        losses = model(images, targets=targets, mode="loss")
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()
        history.append(losses["mixture.loss"].item())
    assert sum(history[-3:]) < 0.8 * sum(history[:3])


def test_frozen_parts_do_not_change_by_a_byte(make_model, batch):
    settings = every_loss(
        backbone=dict(type="TimmPyramid", name="resnet18"),  # batch norm in the backbone as well
        frozen=("backbone", "experts"),
        train_dispatch="dense",
        routing_losses=dict(distil=dict(type="ExpertIoUDistillation")),
    )
    settings["expert_loss_weight"] = 0.0
    model = make_model(**settings).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    images, targets = batch(2)
    for _ in range(3):
        optimizer.zero_grad()
        model.parse_losses(model(images, targets=targets, mode="loss"))[0].backward()
        optimizer.step()
    after = model.state_dict()
    changed = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {"router"}
    assert model.router.training and not model.experts["sinet"].training
    model.eval().train()
    assert not model.backbone.training
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"router"}


def test_one_expert_can_be_frozen(make_model, batch):
    model = make_model(**every_loss(frozen=("experts.sinet",), train_dispatch="dense")).train()
    images, targets = batch(2)
    model.parse_losses(model(images, targets=targets, mode="loss"))[0].backward()
    assert all(p.grad is None for p in model.experts["sinet"].parameters())
    assert all(p.grad is not None for p in model.experts["pranet"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())


def test_a_lone_expert_is_a_mixture_of_one(make_model, batch):
    images, targets = batch(2)
    for name, cfg in MINIATURES.items():
        model = make_model(experts={name: cfg}, expert_loss_weight=1.0).eval()
        logits, decision, outputs = model.mixture(images)
        own = F.interpolate(outputs[name].logits, (64, 64), mode="bilinear")
        torch.testing.assert_close(logits, own, atol=1e-5, rtol=1e-5)
        assert decision.weights.tolist() == [[1.0], [1.0]]
        losses = model(images, targets=targets, mode="loss")
        assert all(k.startswith((f"{name}.loss", "IoU_")) for k in losses)


def samples_of(shapes):
    return [CODDataSample(metainfo=dict(ori_shape=s, stem=str(i))) for i, s in enumerate(shapes)]


def test_predict_fills_samples_at_their_own_resolution(make_model, batch):
    model = make_model().eval()
    given = samples_of([(64, 64), (50, 121)])
    with torch.no_grad():
        images = batch(2)[0]
        samples = model(images, given, mode="predict")
        logits = model(images)
    assert [s.pred_prob.shape for s in samples] == [(64, 64), (50, 121)]
    assert samples[1].stem == "1"
    torch.testing.assert_close(samples[0].pred_prob, logits[0, 0].sigmoid())
    for s in samples:
        assert s.pred_prob.min() >= 0 and s.pred_prob.max() <= 1
        assert s.routing["probabilities"].shape == (4,)
        assert s.routing["indices"].dtype == torch.long and s.routing["indices"].shape == (2,)
        assert s.routing["weights"].sum().item() == pytest.approx(1)
        assert s.routing["expert_names"] == sorted(MINIATURES)
        assert "expert_probs" not in s
    assert len(model(batch(2)[0], mode="predict")) == 2  # without annotations too


@pytest.mark.parametrize("size", [(64, 64), (60, 75)])
def test_running_all_experts_does_not_change_the_prediction(make_model, batch, size):
    images = batch(2, *size)[0]
    shapes = [(64, 64), (50, 121)]
    with torch.no_grad():
        model = make_model().eval()
        plain = model(images, samples_of(shapes), mode="predict")
        model.evaluate_all_experts = True
        full = model(images, samples_of(shapes), mode="predict")
    for a, b in zip(plain, full, strict=True):
        torch.testing.assert_close(a.pred_prob, b.pred_prob, atol=1e-5, rtol=0)
        assert list(b.expert_probs) == sorted(MINIATURES)
        assert all(p.shape == b.pred_prob.shape for p in b.expert_probs.values())
        mixed = sum(
            w * b.expert_probs[b.routing["expert_names"][i]]
            for i, w in zip(b.routing["indices"], b.routing["weights"], strict=True)
        )
        if a.pred_prob.shape == size:  # elsewhere logits are resized before the sigmoid
            torch.testing.assert_close(b.pred_prob, mixed, atol=1e-5, rtol=0)


def test_dense_training_knows_every_experts_iou(make_model, batch):
    model = make_model(train_dispatch="dense").train()
    images, targets = batch(2)
    torch.manual_seed(3)
    losses = model(images, targets=targets, mode="loss")
    assert 0 <= losses["IoU_sinet"] <= losses["IoU_oracle"] <= 1
    torch.manual_seed(3)
    logits, _, outputs = model.mixture(images, dense=True)
    assert logits.shape == targets.shape
    expected = iou_per_image(outputs["sinet"].logits, targets).mean()
    torch.testing.assert_close(losses["IoU_sinet"], expected)


def test_a_mixture_of_all_in_training_and_of_top_k_afterwards(make_model, force, batch):
    images, targets = batch(2)
    logits = [[2.0, 1.0, 0.0, -1.0]] * len(images)
    settings = dict(train_dispatch="dense", mixture_loss=dict(type="StructureLoss"))
    model = force(make_model(**settings, train_top_k="all"), logits)
    four = force(make_model(**settings, top_k=4), logits, top_k=4)
    two = force(make_model(**settings), logits)
    model.router.train_top_k = 4  # of the router that was forced, too
    for other in (four, two):
        other.load_state_dict(model.state_dict())
    losses = [
        m.train()(images, targets=targets, mode="loss")["mixture.loss"].item()
        for m in (model, four, two)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert model(images, return_routing_info=True)[1]["top_k_indices"].shape[1] == 4
    for m in (model, two):
        m.load_state_dict(four.state_dict())
    maps = [m.eval()(images, return_routing_info=True) for m in (model, two)]
    torch.testing.assert_close(maps[0][0], maps[1][0])
    assert maps[0][1]["top_k_indices"].shape[1] == 2
    assert make_model(train_dispatch="dense", train_top_k=3).router.train_top_k == 3


def test_experts_set_to_none_are_dropped(make_model):
    model = make_model(experts={**MINIATURES, "ujsc": None})
    assert model.expert_names == ("pranet", "sinet", "zoomnet")
    assert make_model(routing_losses=dict(z=None)).routing_losses.keys() == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(frozen=("bakbone",)), r"frozen=.*'bakbone'.*'backbone'"),
        (dict(frozen=("experts.sinnet",)), r"frozen=.*'experts.sinet'"),
        (dict(num_experts=3), r"num_experts=3, but experts names 4"),
        (dict(top_k=5), r"top_k=5.*4"),
        (dict(top_k=0), r"top_k=0"),
        (dict(train_top_k=5, train_dispatch="dense"), r"train_top_k=5: .* from top_k, 2, .* 4"),
        (dict(train_top_k=1, train_dispatch="dense"), r"train_top_k=1: .* from top_k, 2"),
        (dict(train_top_k="all"), r"train_top_k='all' with train_dispatch='sparse'.*'dense'"),
        (dict(train_dispatch="all"), r"use 'sparse' or 'dense'"),
        (dict(experts=dict(sinet=None)), r"experts is empty"),
        (dict(experts=dict(bce_loss=MINIATURES["sinet"])), r"experts.bce_loss: .*another name"),
        (dict(experts=dict(sinet="SINetExpert")), r"experts.sinet=.*dict with a type"),
        (dict(experts=dict(sinet=dict(type="LogitCombiner"))), r"experts.sinet: .*is no Expert"),
        (dict(router=dict(type="EvidenceRouter", widht=3)), r"router: .*'width'"),
        (dict(newcomers=("sinnet",)), r"newcomers: 'sinnet' is not an expert .*'sinet'"),
        (dict(newcomers=("sinet", "sinet")), r"newcomers=.*'sinet' is named twice"),
        (dict(newcomers="sinet"), r"newcomers='sinet': give a tuple .*\('sinet',\)"),
        (dict(router=dict(type="UniformRouter"), top_k=2), r"router: .*leave top_k out"),
        (dict(combiner=dict(type="StructureLoss")), r"combiner: .*is no Combiner"),
        (dict(backbone="pvt_v2_b22"), r"backbone.name='pvt_v2_b22'.*'pvt_v2_b2'"),
        (dict(backbone="resnet5o"), r"'resnet50'"),
        (
            dict(routing_losses=dict(distil=dict(type="ExpertIoUDistillation"))),
            r"routing_losses.distil .*train_dispatch='dense'",
        ),
    ],
)
def test_mistakes_are_told_by_their_config_key(make_model, settings, message):
    with pytest.raises(ValueError, match=message):
        make_model(**settings)


class Own(Expert):
    """An expert as somebody writes a first one."""

    def __init__(self, *, in_channels, returns=None):
        super().__init__(in_channels=in_channels)
        self.head = torch.nn.Conv2d(in_channels[1], 2, 1)
        self.returns = returns

    def forward(self, images, pyramids):
        return self.returns(self.head(pyramids[0][1]))


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda x: x, r"Own.forward returned Tensor; return ExpertOutput\(logits"),
        (lambda x: ExpertOutput([x]), r"Own.forward returned list; return ExpertOutput\(logits"),
        (lambda x: ExpertOutput(x), r"returned logits \(2, 2, 8, 8\); .*\(M, 1, h, w\)"),
    ],
)
def test_an_expert_that_returns_something_else_is_told(make_model, batch, returns, message):
    model = make_model(experts=dict(sinet=MINIATURES["sinet"]))
    model.experts["sinet"] = Own(in_channels=model.backbone.channels, returns=returns)
    with pytest.raises(ValueError, match=message):
        model.eval()(batch(2)[0])
    images, targets = batch(2)
    with pytest.raises(ValueError, match=message):
        model.train()(images, targets=targets, mode="loss")


class Losing(Own):
    def forward(self, images, pyramids):
        return ExpertOutput(self.head(pyramids[0][1])[:, :1])

    def loss(self, output, target, progress):
        return self.returns(output.logits.mean((1, 2, 3)))


@pytest.mark.parametrize("execution", ["sequential", "checkpoint", "together"])
@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda x: x.mean(), r"Losing.loss returned Tensor; return dict\(name=scalar\)"),
        (lambda x: dict(a=x.mean(), bce=x), r"Losing.loss returned 'bce': \(2,\); return dict"),
        (lambda x: dict(bce=x.mean().item()), r"Losing.loss returned 'bce': float; return dict"),
        (lambda x: {}, r"Losing.loss returned no loss; return dict"),
        (lambda x: dict(bce=x.detach().mean()), r"Losing: its losses have no gradient, so it"),
    ],
)
def test_a_loss_that_is_something_else_is_told(make_model, batch, execution, returns, message):
    settings = dict(expert_execution=execution, expert_loss_weight=1.0)
    model = make_model(experts=dict(sinet=MINIATURES["sinet"]), **settings)
    model.experts["sinet"] = Losing(in_channels=model.backbone.channels, returns=returns)
    images, targets = batch(2)
    with pytest.raises(ValueError, match=message):
        model.train()(images, targets=targets, mode="loss")


class Older(Own):
    def forward(self, pyramid):
        return ExpertOutput(self.head(pyramid[1]))


class Unset(Own):
    def __init__(self, *, in_channels):
        torch.nn.Module.__init__(self)


class Unchosen(Router):
    def __init__(self, *, in_channels, expert_names, top_k):
        super().__init__(in_channels=in_channels, expert_names=expert_names, top_k=top_k)

    def score(self, images, pyramid):
        return images.mean((2, 3))


class Unscored(Unchosen):
    def score(self, images, pyramid):
        return [0.0]


class Unmixed(Combiner):
    def combine(self, maps, decision):
        return maps


class Bare(Backbone):
    def forward(self, images):
        return [images] * 3


class Short(Bare):
    channels, size_divisor = (3, 3, 3, 3), 32


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        ("experts", Older, r"Older.forward is called with \(images, pyramids\)"),
        ("experts", Unset, r"experts.mine: Unset.__init__ sets no backbone; .*super\(\)"),
        ("router", Unchosen, r"Unchosen.score returned \(2, 3\); return logits \(N, 4\)"),
        ("router", Unscored, r"Unscored.score returned list; return logits \(N, 4\)"),
        ("combiner", Unmixed, r"Unmixed.combine returned \(2, 2, 64, 64\); return one map"),
        ("backbone", Bare, r"backbone: Bare.__init__ sets no channels, size_divisor"),
    ],
)
def test_an_own_part_that_misses_its_contract_is_told(make_model, batch, part, kind, message):
    cfg = dict(type=MODELS.register_module(force=True, module=kind).__name__)
    with pytest.raises(ValueError, match=message):
        make_model(**{part: dict(mine=cfg) if part == "experts" else cfg}).eval()(batch(2)[0])


class Fine(Bare):
    """Right channels, each map at half the stride it should have."""

    channels, size_divisor = (4, 4, 4, 4), 32

    def forward(self, images):
        return [F.avg_pool2d(images, s)[:, [0, 0, 1, 2]] for s in (2, 4, 8, 16)]


def test_a_backbone_at_other_strides_is_told(make_model, batch):
    """Decoders resize, and would predict from it all the same."""
    MODELS.register_module(force=True, module=Fine)
    said = r"Fine made maps of 32x32, 16x16, 8x8, 4x4 of images of 64x64; return four at strides "
    with pytest.raises(ValueError, match=said + "4, 8, 16, 32: 16x16, 8x8, 4x4, 2x2"):
        make_model(backbone=dict(type="Fine")).eval()(batch(1)[0])


class FineInParts(Fine):
    """The same, split before its last block."""

    def begin(self, images, own_blocks):
        return [images]

    def ending(self, own_blocks):
        class Ending(torch.nn.Module):
            def forward(self, begun):
                return Fine.forward(self, begun[0])

        return Ending()


def test_blocks_of_an_expert_at_other_strides_are_told(make_model, batch):
    MODELS.register_module(force=True, module=FineInParts)
    experts = dict(sinet=dict(type="SINetExpert", channels=8, own_blocks=1))
    model = make_model(backbone=dict(type="FineInParts"), experts=experts, top_k=1).eval()
    with pytest.raises(ValueError, match=r"FineInParts made maps of 32x32, .*strides 4, 8, 16, 32"):
        model(batch(1)[0])


def test_a_backbone_that_lacks_a_level_is_told(batch):
    with pytest.raises(ValueError, match=r"Short returned maps of \(3, 3, 3\) channels"):
        Passes.of(Short()).end([batch(2)[0]])


def test_too_many_default_experts_are_told():
    with pytest.raises(ValueError, match=r"num_experts=5.*sinet, pranet, zoomnet, ujsc"):
        ModelLevelMoE("pvt_v2_b0", num_experts=5)


def test_wrong_calls_are_told(make_model, batch):
    model, images = make_model(), batch(1)[0]
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        model(images[0])
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        model(images[:, :1])
    with pytest.raises(ValueError, match="needs targets"):
        model(images, mode="loss")
    with pytest.raises(ValueError, match="'tensor', 'predict' or 'loss'"):
        model(images, mode="prediction")


def test_builds_from_a_config_through_mmengine(make_model, batch):
    cfg = dict(
        type="ModelLevelMoE",
        backbone=dict(type="TimmPyramid", name="pvt_v2_b0"),
        experts=MINIATURES,
        router=dict(type="FixedRouter", weights=dict(sinet=3.0, zoomnet=1.0)),
        combiner=dict(type="LogitCombiner"),
    )
    model = MODELS.build(cfg).eval()
    _, info = model(batch(2)[0], return_routing_info=True)
    assert info["top_k_indices"].tolist() == [[1, 3]] * 2  # in alphabetical order
    torch.testing.assert_close(info["top_k_weights"], torch.tensor([[0.75, 0.25]] * 2))


def test_shared_experts_are_chosen_for_every_image(make_model, batch):
    model = make_model(top_k=3, shared_experts=("ujsc",)).eval()
    for parameter in model.router.parameters():  # fresh, it scores all experts alike
        torch.nn.init.normal_(parameter, std=0.3)
    _, info = model(batch(4)[0], return_routing_info=True)
    ujsc = model.expert_names.index("ujsc")
    assert (info["top_k_indices"] == ujsc).sum(1).tolist() == [1] * 4
    # Weighed by its own score, as the others are.
    chosen = info["logits"].gather(1, info["top_k_indices"])
    torch.testing.assert_close(info["top_k_weights"], chosen.softmax(1))
    rest = info["logits"].clone()
    rest[:, ujsc] = -torch.inf
    best = rest.topk(2, dim=1).indices
    assert torch.equal(best, info["top_k_indices"][:, 1:])


def test_shared_experts_leave_the_router_a_choice(make_model):
    with pytest.raises(ValueError, match="set top_k=2 or more"):
        make_model(top_k=1, shared_experts=("ujsc",))
    with pytest.raises(ValueError, match=r"shared_experts='ujcs'.*'ujsc'"):
        make_model(top_k=2, shared_experts=("ujcs",))


def decide(probabilities, indices, weights, names="abcd"):
    p = torch.tensor(probabilities)
    return RoutingDecision(p.log(), p, torch.tensor(indices), torch.tensor(weights), tuple(names))


def test_mutual_information_between_nothing_and_everything():
    same = decide([[0.7, 0.1, 0.1, 0.1]] * 4, [[0]] * 4, [[1.0]] * 4)
    assert routing_monitors(same)["mutual_information"].item() == pytest.approx(0, abs=1e-6)
    own = torch.eye(4).clamp(min=1e-9).tolist()
    apart = decide(own, [[0], [1], [2], [3]], [[1.0]] * 4)
    assert routing_monitors(apart)["mutual_information"].item() == pytest.approx(math.log(4), 1e-4)


def test_shares_oracle_and_first_choice_by_hand():
    d = decide([[0.4, 0.3, 0.2, 0.1]] * 2, [[0, 1], [3, 0]], [[0.6, 0.4], [0.9, 0.1]])
    iou = torch.tensor([[0.5, 0.8, 0.1, 0.2], [0.3, 0.1, 0.2, 0.6]])
    m = {k: v.item() for k, v in routing_monitors(d, iou).items()}
    assert m["share_a"] == pytest.approx(0.35) and m["share_d"] == pytest.approx(0.45)
    assert sum(m[f"share_{n}"] for n in "abcd") == pytest.approx(1)
    assert m["IoU_oracle"] == pytest.approx(0.7)
    assert m["IoU_first_choice"] == pytest.approx(0.55)
    assert m["IoU_b"] == pytest.approx(0.45)
    assert not any("loss" in k.lower() for k in m)


def test_a_lone_expert_has_nothing_to_watch_but_itself():
    d = decide([[1.0]] * 2, [[0]] * 2, [[1.0]] * 2, names="a")
    assert routing_monitors(d) == {}
    assert set(routing_monitors(d, torch.ones(2, 1))) == {"IoU_a"}


@pytest.mark.parametrize("run_router", [True, False])
def test_a_model_on_a_route_shares_all_parts_and_takes_the_names(make_model, batch, run_router):
    model, (images, _), ran = make_model(), batch(2), []
    watched = dict(router=model.router.fuse, **dict(model.experts.items()))
    for name, part in watched.items():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    routed = model.on_route(["sinet", "pranet"], run_router=run_router)
    with torch.no_grad():
        _, decision, outputs = routed.mixture(images)
    assert sorted(ran) == ["pranet", *(["router"] if run_router else []), "sinet"]
    assert decision.indices.tolist() == [[1, 0]] * 2 and decision.weights.unique().item() == 0.5
    assert set(outputs) == {"pranet", "sinet"}
    assert routed.experts is model.experts and routed.router is not model.router
    with pytest.raises(ValueError, match=r"no expert 'sient'.*'sinet'"):
        model.on_route(["sient"])


@pytest.mark.parametrize("newcomers", [("sinet",), ("sinet", "ujsc")])
def test_a_mixture_that_took_all_experts_goes_on_with_as_many(make_model, batch, newcomers):
    model = make_model(router=dict(type="UniformRouter"), newcomers=newcomers)
    images, _ = batch(2)
    _, decision, _ = model.mixture(images)
    old = [name for name in model.expert_names if name not in newcomers]
    assert sorted(model.expert_names[i] for i in decision.indices[0]) == old
    assert decision.weights.unique().item() == pytest.approx(1 / len(old))


@pytest.mark.parametrize("run_router", [True, False])
def test_on_a_route_the_held_router_of_a_grown_mixture_stays_held(make_model, run_router):
    model = make_model(newcomers=("ujsc",)).train()
    routed = model.on_route(["sinet"], run_router=run_router)
    assert routed.router.training
    assert model.router.training and not model.router.old.training
    routed.train()
    assert model.router.evidence.training
    assert not any(part.training for part in model.router.old.modules())

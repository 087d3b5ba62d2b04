import pytest
import torch
import torch.nn.functional as F

from codmoe.models.combiners import into_slots
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput, RoutingDecision

NAMES = ("a", "b", "c")
COMBINERS = ("ProbabilityCombiner", "LogitCombiner")


def build(kind, **kwargs):
    return MODELS.build(dict(type=kind, expert_names=NAMES, **kwargs))


def decide(indices, weights):
    indices, weights = torch.tensor(indices), torch.tensor(weights)
    full = torch.zeros(len(indices), 3).scatter(1, indices, weights)
    return RoutingDecision(full.log(), full, indices, weights, NAMES)


DECISION = decide([[2, 0], [0, 1]], [[0.7, 0.3], [0.6, 0.4]])


def dense_outputs(size=(8, 8), scale=3.0):
    return {name: ExpertOutput(scale * torch.randn(2, 1, *size)) for name in NAMES}


def sparse(outputs, rows):
    picked = {}
    for name, index in rows.items():
        o, index = outputs[name], torch.tensor(index)
        picked[name] = ExpertOutput(o.logits[index], rows=index)
    return picked


@pytest.mark.parametrize(
    ("kind", "mixed_as"), [("ProbabilityCombiner", torch.sigmoid), ("LogitCombiner", torch.clone)]
)
def test_mixtures_by_hand(kind, mixed_as):
    out = dense_outputs()
    mixed = mixed_as(build(kind)(out, DECISION, (8, 8)))
    a, b, c = (mixed_as(out[n].logits) for n in NAMES)
    torch.testing.assert_close(mixed[0], 0.7 * c[0] + 0.3 * a[0])
    torch.testing.assert_close(mixed[1], 0.6 * a[1] + 0.4 * b[1])


@pytest.mark.parametrize("kind", COMBINERS)
def test_learned_temperature_sharpens_soft_maps_and_keeps_the_mask(kind):
    # Maps that are right and soft: training makes them sharper, the mask at 0.5 stays.
    torch.manual_seed(0)
    out = dense_outputs(scale=0.5)
    truth = (build(kind)(out, DECISION, (8, 8)) > 0).float()
    combiner = build(kind, learn_temperature=True)
    before = combiner(out, DECISION, (8, 8))
    torch.testing.assert_close(before, build(kind)(out, DECISION, (8, 8)), rtol=0, atol=0)
    optimiser = torch.optim.Adam([combiner.log_temperature], lr=0.1)
    for _ in range(20):
        loss = F.binary_cross_entropy_with_logits(combiner(out, DECISION, (8, 8)), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = combiner(out, DECISION, (8, 8))
    assert after.abs().mean() > 2 * before.abs().mean()
    assert ((after > 0) == (before > 0)).all()


def test_a_calibration_is_part_of_the_config():
    out = dense_outputs()
    plain = build("ProbabilityCombiner")(out, DECISION, (8, 8))
    kept = build("ProbabilityCombiner", temperature=2.0, offset=-0.5)
    torch.testing.assert_close(kept(out, DECISION, (8, 8)), plain / 2 - 0.5)
    assert not kept.state_dict()
    with pytest.raises(ValueError, match=r"combiner\.temperature=0 must be above 0"):
        build("ProbabilityCombiner", temperature=0)


def test_sure_experts_stay_exact():
    kind = "ProbabilityCombiner"
    agreed = {
        "a": ExpertOutput(torch.tensor([60.0, -60.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)),
        "b": ExpertOutput(torch.full((2, 1, 4, 4), -60.0)),
        "c": ExpertOutput(torch.full((2, 1, 4, 4), 60.0)),
    }
    mixed = build(kind)(agreed, DECISION, (4, 4))
    torch.testing.assert_close(mixed[0], torch.full((1, 4, 4), 60.0))
    torch.testing.assert_close(mixed[1], torch.full((1, 4, 4), -60.0))
    opposed = {n: ExpertOutput(-o.logits if n == "a" else o.logits) for n, o in agreed.items()}
    mixed = build(kind)(opposed, DECISION, (4, 4))  # the weights decide: 0.7 : 0.3, 0.6 : 0.4
    for value, p in zip((mixed[0], mixed[1]), (0.7, 0.6), strict=True):
        torch.testing.assert_close(value, torch.full((1, 4, 4), p).logit())


@pytest.mark.parametrize("kind", COMBINERS)
@pytest.mark.parametrize("extreme", [-60.0, 60.0])
def test_gradients_reach_logits_and_weights(kind, extreme):
    out = dense_outputs()
    out["c"].logits[:] = extreme
    for o in out.values():
        o.logits.requires_grad_()
    weights = DECISION.weights.clone().requires_grad_()
    decision = RoutingDecision(
        DECISION.logits, DECISION.probabilities, DECISION.indices, weights, NAMES
    )
    mixed = build(kind)(out, decision, (8, 8))
    (mixed * torch.rand_like(mixed)).mean().backward()
    assert weights.grad.isfinite().all() and (weights.grad != 0).all()
    for o in out.values():
        assert o.logits.grad.isfinite().all()
    assert out["a"].logits.grad[0].any() and out["a"].logits.grad[1].any()
    assert out["b"].logits.grad[1].any() and not out["b"].logits.grad[0].any()
    assert not out["c"].logits.grad[1].any()  # image 1 was not routed there


@pytest.mark.parametrize("kind", COMBINERS)
def test_sparse_outputs_land_in_the_right_slots(kind):
    out = dense_outputs()
    combiner = build(kind)
    dense = combiner(out, DECISION, (8, 8))
    routed = sparse(out, dict(a=[0, 1], b=[1], c=[0]))
    torch.testing.assert_close(combiner(routed, DECISION, (8, 8)), dense)
    shuffled = sparse(out, dict(c=[0], b=[1], a=[1, 0]))
    torch.testing.assert_close(combiner(shuffled, DECISION, (8, 8)), dense)


def test_slots_follow_the_order_of_the_choice():
    out = {n: ExpertOutput(torch.full((2, 1, 2, 2), 1.0 + i)) for i, n in enumerate(NAMES)}
    slots = into_slots(sparse(out, dict(a=[0, 1], b=[1], c=[0])), DECISION, (2, 2))
    assert slots[:, :, 0, 0].tolist() == [[3, 1], [1, 2]]


@pytest.mark.parametrize("kind", COMBINERS)
def test_maps_of_any_size_and_precision_become_one(kind):
    out = {n: ExpertOutput(torch.randn(2, 1, 3 + i, 5).bfloat16()) for i, n in enumerate(NAMES)}
    mixed = build(kind)(out, DECISION, (13, 17))
    assert mixed.shape == (2, 1, 13, 17) and mixed.dtype == torch.float32


def test_one_choice_is_that_experts_map():
    out = dense_outputs()
    decision = decide([[1], [2]], [[1.0], [1.0]])
    for kind in COMBINERS:
        mixed = build(kind)(out, decision, (8, 8))
        torch.testing.assert_close(mixed[0], out["b"].logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed[1], out["c"].logits[1], atol=1e-5, rtol=1e-5)

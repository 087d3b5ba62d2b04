import math

import pytest
import torch

from codmoe.evaluation.routing_metric import dense_weights, first_choice, mutual_information
from codmoe.registry import METRICS
from codmoe.structures import CODDataSample

NAMES = ["a", "b", "c"]
GT = torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8)
RIGHT = torch.tensor([[0.9, 0.9, 0.1, 0.1]])
HALF = torch.tensor([[0.9, 0.1, 0.1, 0.1]])
WRONG = torch.tensor([[0.1, 0.1, 0.1, 0.9]])


def sample(index, probabilities, indices, weights, experts=None, mixture=HALF):
    element = CODDataSample(metainfo={"stem": str(index), "dataset": "CAMO"})
    element.gt_mask, element.pred_prob = GT, mixture
    element.routing = {
        "probabilities": torch.tensor(probabilities),
        "indices": torch.tensor(indices),
        "weights": torch.tensor(weights),
        "expert_names": NAMES,
    }
    if experts:
        element.expert_probs = dict(zip(NAMES, experts, strict=True))
    return element


def run(samples):
    metric = METRICS.build({"type": "RoutingMetric"})
    metric.process(None, [samples[0].to_dict(), *samples[1:]])
    return metric, metric.evaluate(len(samples))


@pytest.mark.parametrize("experts", [2, 4])
def test_mutual_information_limits(experts):
    same = torch.full((6, experts), 1 / experts)
    assert mutual_information(same) == pytest.approx(0, abs=1e-9)
    collapsed = torch.eye(experts)[[0] * 6]
    assert mutual_information(collapsed) == pytest.approx(0, abs=1e-9)
    assert mutual_information(torch.eye(experts)) == pytest.approx(math.log(experts))


def test_mutual_information_by_hand():
    def entropy(*p):
        return -sum(x * math.log(x) for x in p)

    value = mutual_information(torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64))
    expected = entropy(0.6, 0.4) - (entropy(0.9, 0.1) + entropy(0.3, 0.7)) / 2
    assert value == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"\(N, E\)"):
        mutual_information(torch.ones(3))


def test_pure_functions():
    records = (dict(indices=[2, 0], weights=[0.75, 0.25]), dict(indices=[1, 0], weights=[0.5, 0.5]))
    dense = torch.stack([dense_weights(dict(r, expert_names=NAMES)) for r in records])
    assert dense.tolist() == [[0.25, 0, 0.75], [0.5, 0.5, 0]]
    assert first_choice(dense).tolist() == [[0, 0, 1], [0.5, 0.5, 0]]


def test_use_of_experts():
    metric, scalars = run(
        [
            sample(0, [0.75, 0.25, 0.0], [0, 1], [0.75, 0.25]),
            sample(1, [0.5, 0.0, 0.5], [2, 0], [0.5, 0.5]),
        ]
    )
    assert [scalars[f"share_{n}"] for n in NAMES] == pytest.approx([0.625, 0.125, 0.25])
    assert [scalars[f"chosen_{n}"] for n in NAMES] == pytest.approx([1, 0.5, 0.5])
    assert scalars["top1_max_share"] == pytest.approx(0.75)
    assert "regret" not in scalars and not any("loss" in key for key in scalars)
    assert [record["stem"] for record in metric.records] == ["0", "1"]
    weights = metric.weights()["CAMO"]
    assert weights["0"] == {"a": 0.75, "b": 0.25, "c": 0} and weights["1"]["c"] == 0.5


def test_quality_of_the_choice_by_hand():
    _, scalars = run(
        [
            # The first choice is the best expert; the mixture reaches half of it.
            sample(0, [0.8, 0.1, 0.1], [0, 1], [0.9, 0.1], (RIGHT, HALF, WRONG), HALF),
            # The first choice is wrong, yet the mixture is right.
            sample(1, [0.2, 0.2, 0.6], [2, 0], [0.6, 0.4], (HALF, HALF, WRONG), RIGHT),
        ]
    )
    assert scalars["IoU_a"] == pytest.approx(0.75)
    assert scalars["IoU_b"] == pytest.approx(0.5)
    assert scalars["IoU_c"] == pytest.approx(0)
    # Means of the maps: [.63 .37 .1 .37] and the same again, so half of the truth.
    assert scalars["IoU_uniform"] == pytest.approx(0.5)
    assert scalars["IoU_oracle"] == pytest.approx(0.75)
    assert scalars["regret"] == pytest.approx((0.5 - 0.5) / 2, abs=1e-9)
    assert scalars["top1_accuracy"] == pytest.approx(0.5)
    assert "IoU_mixture" not in scalars


def test_equally_good_experts_are_all_right():
    _, scalars = run([sample(0, [0.1, 0.8, 0.1], [1], [1.0], (RIGHT, RIGHT, WRONG), RIGHT)])
    assert scalars["top1_accuracy"] == 1 and scalars["regret"] == 0


def test_a_uniform_router_prefers_nobody():
    third = [1 / 3] * 3
    _, scalars = run([sample(i, third, [0, 1, 2], third) for i in range(4)])
    assert scalars["top1_max_share"] == pytest.approx(1 / 3)
    assert scalars["mutual_information"] == pytest.approx(0, abs=1e-9)


def test_missing_routing_is_named():
    element = sample(0, [1.0, 0.0, 0.0], [0], [1.0])
    del element.routing
    with pytest.raises(ValueError, match="'0' has no `routing`; RoutingMetric is for a model with"):
        METRICS.build({"type": "RoutingMetric"}).process(None, [element])

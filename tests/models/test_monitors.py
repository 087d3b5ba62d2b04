import math

import pytest
import torch

from codmoe.models.moe import routing_monitors
from codmoe.structures import RoutingDecision


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

import torch

from codmoe.structures import CODDataSample, ExpertOutput, RoutingDecision


def test_info_of_a_decision_is_what_users_are_promised():
    logits = torch.tensor([[1.0, 0.0, 2.0]])
    decision = RoutingDecision(
        logits, logits.softmax(1), torch.tensor([[2, 0]]), torch.tensor([[0.7, 0.3]]), tuple("abc")
    )
    info = decision.as_info()
    assert set(info) == {
        "expert_names",
        "logits",
        "probabilities",
        "top_k_indices",
        "top_k_weights",
    }
    assert info["expert_names"] == ["a", "b", "c"]
    assert info["top_k_indices"] is decision.indices and info["top_k_weights"] is decision.weights


def test_outputs_do_not_share_their_lists():
    a, b = ExpertOutput(torch.zeros(1, 1, 2, 2)), ExpertOutput(torch.zeros(1, 1, 2, 2))
    a.side_logits.append(a.logits)
    a.extra["image"] = a.logits
    assert b.side_logits == [] and b.extra == {} and b.rows is None


def test_sample_tells_data_from_metainfo():
    sample = CODDataSample(metainfo=dict(stem="frog", ori_shape=(7, 9)))
    sample.gt_mask = torch.zeros(7, 9, dtype=torch.uint8)
    sample.expert_probs = dict(sinet=torch.zeros(7, 9))
    assert sample.stem == "frog" and sample.get("ori_shape") == (7, 9)
    assert set(sample.keys()) == {"gt_mask", "expert_probs"}
    assert set(sample.metainfo) == {"stem", "ori_shape"}
    assert "target" not in sample and sample.get("pred_prob") is None

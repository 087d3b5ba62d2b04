"""What of each image an expert learns."""

import pytest
import torch
from conftest import MINIATURES

TWO = dict(sinet=MINIATURES["sinet"], pranet=MINIATURES["pranet"])


def gradients(model, images, targets):
    """Of the experts' parameters, with batch statistics held."""
    torch.manual_seed(3)
    model.zero_grad()
    losses = model(images, targets=targets, mode="loss")
    model.parse_losses(losses)[0].backward()
    return {k: p.grad.clone() for k, p in model.experts.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("execution", ["together", "sequential", "checkpoint"])
def test_focus_weighs_each_image_by_the_routers_share(make_model, force, execution):
    """Two images at once give the weighted mean of what each gives alone."""
    shared = dict(experts=TWO, expert_loss_weight=1.0, top_k=2, frozen=("backbone",))
    model = make_model(**shared, expert_execution=execution, expert_loss_focus=0.8)
    alike = make_model(**shared)
    model, alike = (force(m, [[1.0, 0.0], [-2.0, 0.5]]).double().eval() for m in (model, alike))
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    targets = (torch.rand(2, 1, 64, 64) > 0.6).double()
    shares = torch.tensor([[1.0, 0.0], [-2.0, 0.5]], dtype=torch.float64).softmax(1)
    pull = 0.2 + 0.8 * 2 * shares

    got = gradients(model, images, targets)
    alone = [gradients(alike, images[i : i + 1], targets[i : i + 1]) for i in range(2)]
    assert got
    for key, value in got.items():
        expert = alike.expert_names.index(key.split(".")[0])
        expected = sum(pull[i, expert] * alone[i][key] for i in range(2)) / 2
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=key)


def test_focus_leaves_the_mixture_alone(make_model):
    """What the mixture's loss sends back is not scaled, and no loss has another value."""
    settings = dict(experts=TWO, top_k=2, mixture_loss=dict(type="StructureLoss"))
    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.6).float()
    model = make_model(**settings, expert_loss_weight=1e-12, expert_loss_focus=1.0).eval()
    plain = make_model(**settings, expert_loss_weight=1e-12).eval()
    plain.load_state_dict(model.state_dict())
    ours, theirs = (m(images, targets=targets, mode="loss") for m in (model, plain))
    torch.testing.assert_close(dict(ours), dict(theirs))
    got, expected = gradients(model, images, targets), gradients(plain, images, targets)
    for key, value in got.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-7, msg=key)


def test_focus_outside_its_range_is_refused(make_model):
    with pytest.raises(ValueError, match=r"expert_loss_focus=1.5.*\[0, 1\]"):
        make_model(expert_loss_focus=1.5)

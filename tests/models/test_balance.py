"""Every expert sends a gradient of the same norm into the backbone, and keeps its own."""

import pytest
import torch
from torch import nn

from codmoe.models.execution import GradientBalance

JOINT = dict(router=dict(type="UniformRouter"), expert_loss_weight=1.0)


def send(balance, loud, scale=1.0):
    """One step of two experts, whose gradients into the pyramid are of norm ``loud`` and 1."""
    balance.update()
    level = torch.zeros(4, requires_grad=True)
    sent = {}
    for name, norm in (("a", loud), ("b", 1.0)):
        (seen,) = balance.enter(name, [level])
        level.grad = None
        (seen * (norm * scale / 2)).sum().backward()
        sent[name] = level.grad.norm().item() / scale
    return sent


def test_norms_become_their_mean():
    balance = GradientBalance(["a", "b"], momentum=0.5)
    assert send(balance, 9.0) == pytest.approx(dict(a=9, b=1))  # nothing is known yet
    for scale in (1.0, 1024.0, 1.0):  # a loss scale cancels out
        assert send(balance, 9.0, scale) == pytest.approx(dict(a=5, b=5))
    ratios = {name: value.item() for name, value in balance.monitors().items()}
    assert ratios == pytest.approx(dict(grad_a=1.8, grad_b=0.2))
    for _ in range(30):
        sent = send(balance, 1.0)
    assert sent == pytest.approx(dict(a=1, b=1), rel=1e-3)


def test_overflow_and_silence_teach_nothing():
    balance = GradientBalance(["a", "b"])
    send(balance, 3.0)
    balance.update()
    before = balance.ratio.clone()
    for broken in (torch.inf, torch.nan, 0.0):
        balance.pass_on(0, [torch.full((4,), broken)])
        balance.update()
        assert torch.equal(balance.ratio, before)
    (gone, there) = balance.pass_on(1, [None, torch.ones(4)])
    assert gone is None and torch.isfinite(there).all()
    # One alone says nothing of the others.
    balance.update()
    torch.testing.assert_close(balance.ratio, before)


def test_no_gradient_is_multiplied_beyond_the_limit():
    balance = GradientBalance(["a", "b"], limit=4.0)
    balance.ratio.copy_(torch.tensor([1.999, 0.001]))
    torch.testing.assert_close(balance.factors(), torch.tensor([1 / 1.999, 4.0]))


@pytest.mark.parametrize("execution", ["together", "sequential", "checkpoint"])
def test_in_the_model(make_model, batch, execution):
    images, targets = batch(2)
    model = make_model(
        **JOINT, expert_execution=execution, expert_loss_normalization="gradient"
    ).train()
    plain = make_model(**JOINT).train()
    for step in range(2):
        losses, gradients = {}, {}
        for which in (model, plain):
            which.zero_grad()
            losses[which] = which(images, targets=targets, mode="loss")
            which.parse_losses(losses[which])[0].backward()
            gradients[which] = {n: p.grad for n, p in which.named_parameters()}
        seen = {n: losses[model][f"grad_{n}"].item() for n in model.expert_names}
        if step == 0:
            assert set(seen.values()) == {1.0}
    assert sum(seen.values()) == pytest.approx(4, rel=1e-4) and max(seen.values()) > 1.2
    assert not any("grad_" in name for name in losses[plain])
    changed = [n for n, g in gradients[plain].items() if _differs(g, gradients[model][n])]
    assert changed and all(name.startswith("backbone") for name in changed)
    assert not any("balance" in key for key in model.state_dict())


def _differs(a, b):
    return a is not None and not torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_what_experts_send_is_equal_whatever_their_loss_is(make_model, batch):
    """Ten times the loss of one expert gives the same gradient in the backbone."""
    images, targets = batch(2)
    backbone = []
    for factor in (1.0, 10.0):
        model = make_model(**JOINT, expert_loss_normalization="gradient").train()
        loss = model.experts["sinet"].structure_loss
        loss.weight = factor
        for _ in range(2):
            model.zero_grad()
            losses = model(images, targets=targets, mode="loss")
            model.parse_losses(losses)[0].backward()
        gradient = nn.utils.parameters_to_vector(
            p.grad if p.grad is not None else torch.zeros_like(p)
            for p in model.backbone.parameters()
        )
        backbone.append(gradient / gradient.norm())
    assert torch.dot(*backbone) > 0.99


def test_maps_divides_by_the_maps_that_an_expert_supervises(make_model, batch):
    images, targets = batch(2)
    plain = make_model(**JOINT).eval()(images, targets=targets, mode="loss")
    maps = make_model(**JOINT, expert_loss_normalization="maps").eval()
    shared = maps(images, targets=targets, mode="loss")
    for name, count in dict(sinet=4, pranet=4, ujsc=2, zoomnet=1).items():
        for key in (key for key in plain if key.startswith(f"{name}.loss")):
            torch.testing.assert_close(shared[key] * count, plain[key])


def test_unknown_normalization_is_told(make_model):
    with pytest.raises(ValueError, match=r"expert_loss_normalization='norm'.*'gradient'"):
        make_model(**JOINT, expert_loss_normalization="norm")

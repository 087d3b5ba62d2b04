import pytest
import torch
import torch.distributed as dist
from miniature import ranks

from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.models.losses import ExpertIoUDistillation, LoadBalanceLoss, RouterZLoss
from codmoe.structures import RoutingDecision

NAMES = tuple("abcd")


def decide(logits, k=2):
    p = logits.softmax(1)
    chosen, indices = logits.topk(k, dim=1)
    return RoutingDecision(logits, p, indices, chosen.softmax(1), NAMES)


def balanced():
    return decide(3 * torch.eye(4) + 2 * torch.eye(4).roll(1, 1))


def collapsed():
    return decide(torch.tensor([[5.0, 4.0, 0.0, 0.0]] * 4))


def test_switch_balance_is_one_at_balance_and_more_when_collapsed():
    loss = LoadBalanceLoss(weight=1.0)
    assert loss(balanced()).item() == pytest.approx(1.0)
    assert loss(decide(torch.zeros(8, 4))).item() == pytest.approx(1.0)
    assert loss(collapsed()).item() > 1.5
    only_one = decide(torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 4), k=1)
    assert loss(only_one).item() == pytest.approx(4.0)


def test_importance_balance_is_zero_at_balance_and_a_squared_variation_otherwise():
    loss = LoadBalanceLoss(weight=1.0, form="importance")
    assert loss(balanced()).item() == pytest.approx(0.0, abs=1e-9)
    p = collapsed().probabilities.mean(0)
    expected = ((p - p.mean()) ** 2).mean() / p.mean() ** 2
    assert loss(collapsed()).item() == pytest.approx(expected.item())
    assert expected > 0.5


@pytest.mark.parametrize("form", ["switch", "importance"])
def test_balance_gradient_takes_from_the_favourite_and_gives_to_those_never_chosen(form):
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]] * 4, requires_grad=True)
    LoadBalanceLoss(weight=1.0, form=form)(decide(logits)).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 2:] < 0).all()


def test_balance_counts_the_choice_and_not_what_training_adds_to_the_mixture():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]] * 4)
    two, all_four = decide(logits), decide(logits, k=4)
    all_four.top_k = 2
    loss = LoadBalanceLoss(weight=1.0)
    torch.testing.assert_close(loss(all_four), loss(two))


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    lse = [4.0, sum(2.718281828459045**i for i in (1, 2, 3, 4))]
    expected = sum(torch.tensor(v).log().item() ** 2 for v in lse) / 2
    assert RouterZLoss(weight=0.1)(decide(logits)).item() == pytest.approx(0.1 * expected)


def test_distillation_is_least_where_the_router_equals_its_target():
    iou = torch.tensor([[0.9, 0.85, 0.2, 0.8], [0.5, 0.5, 0.5, 0.6]])
    loss = ExpertIoUDistillation(tau=0.05)
    at_target = (iou / 0.05).requires_grad_()
    value = loss(decide(at_target), iou)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    value.backward()
    assert at_target.grad.abs().max() < 1e-6
    target = (iou.double() / 0.05).softmax(1)
    uniform = (target * (target * 4).log()).sum(1).mean().item()
    assert loss(decide(torch.zeros(2, 4)), iou).item() == pytest.approx(uniform, rel=1e-4)
    assert uniform > 0.1


def test_distillation_moves_the_router_towards_the_better_expert():
    logits = torch.zeros(1, 4, requires_grad=True)
    iou = torch.tensor([[0.3, 0.9, 0.3, 0.3]])
    ExpertIoUDistillation()(decide(logits), iou).backward()
    assert logits.grad[0].argmin() == 1 and logits.grad[0, 1] < 0
    assert (logits.grad[0, [0, 2, 3]] > 0).all()


def test_impossible_settings_are_told():
    with pytest.raises(ValueError, match="'switch' or 'importance'"):
        LoadBalanceLoss(form="cv")
    with pytest.raises(ValueError, match="tau=0"):
        ExpertIoUDistillation(tau=0)
    with pytest.raises(ValueError, match=r"ExpertIoUDistillation.*train_dispatch='dense'"):
        ExpertIoUDistillation()(balanced())


@pytest.mark.parametrize(
    "loss", [LoadBalanceLoss(), LoadBalanceLoss(form="importance"), RouterZLoss()]
)
def test_weight_is_a_factor(loss):
    d = decide(torch.randn(6, 4))
    once = loss(d)
    loss.weight *= 5
    torch.testing.assert_close(loss(d), 5 * once)


def data():
    generator = torch.Generator().manual_seed(5)
    x, w = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((8, 3), (3, 4)))
    return x, w.requires_grad_()


def one_rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    results = {}
    for form in ("switch", "importance"):
        x, w = data()
        x = x[rank::world]
        loss = LoadBalanceLoss(weight=1.0, form=form)(decide(x @ w))
        loss.backward()
        dist.all_reduce(w.grad)  # as DistributedDataParallel does: the mean over ranks
        results[form] = (loss.item(), w.grad / world)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    leave_cpu_process_group()


def test_two_processes_balance_as_one(tmp_path):
    ranks(one_rank, 2, str(tmp_path))
    results = torch.load(tmp_path / "results.pt")
    for form, (value, gradient) in results.items():
        x, w = data()
        expected = LoadBalanceLoss(weight=1.0, form=form)(decide(x @ w))
        expected.backward()
        assert value == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(gradient, w.grad, atol=1e-6, rtol=1e-4)
        assert w.grad.abs().max() > 1e-3

"""Ways to run experts in training: the same gradients, or gradients of the same norm."""

from collections import Counter

import pytest
import torch
from miniature import MINIATURES

from benchmarks.memory import saved_bytes
from codmoe.models.execution import block_switches, forward_backward
from codmoe.structures import CODDataSample


def joint(make_model, execution, dtype=torch.float64, **changes):
    settings = dict(
        router=dict(type="UniformRouter"), expert_loss_weight=1.0, expert_execution=execution
    )
    return make_model(**{**settings, **changes}).to(dtype).train()


def one_step(model, images, targets):
    torch.manual_seed(5)
    losses = model(images, targets=targets, mode="loss")
    model.zero_grad()
    model.parse_losses(losses)[0].backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def assert_same(model, expected_model, images, targets):
    losses, gradients = one_step(model, images, targets)
    expected_losses, expected = one_step(expected_model, images, targets)
    assert list(losses) == list(expected_losses)
    for name, value in expected_losses.items():
        torch.testing.assert_close(losses[name], value)
    for name, value in expected.items():
        if value is None:
            assert gradients[name] is None, name
        else:
            difference = (gradients[name] - value).abs().max()
            assert difference <= 1e-6 * value.abs().max().clamp(min=1e-9), name
    state, expected_state = model.state_dict(), expected_model.state_dict()
    for name, value in expected_state.items():  # batch-norm statistics among them
        torch.testing.assert_close(state[name], value)


TWO = dict(sinet=MINIATURES["sinet"], zoomnet=MINIATURES["zoomnet"])
SETTINGS = dict(
    four_experts=dict(experts=MINIATURES),
    maps=dict(expert_loss_normalization="maps"),
    frozen_backbone=dict(frozen=("backbone",)),
    frozen_expert=dict(frozen=("experts.sinet",)),
    extra=dict(checkpoint_backbone="extra"),
    all=dict(checkpoint_backbone="all"),
    batch_norm=dict(backbone=dict(type="TimmPyramid", name="resnet18"), checkpoint_backbone="all"),
    sparse=dict(
        experts=MINIATURES, router=dict(type="FixedRouter", weights=dict(ujsc=1.0, zoomnet=1.0))
    ),
    weighted=dict(expert_loss_weight=0.3),
)


@pytest.mark.parametrize("execution", ["sequential", "checkpoint"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gradients_losses_and_statistics_are_those_of_running_together(
    make_model, batch, execution, settings
):
    images, targets = (x.double() for x in batch(2))
    settings = {"experts": TWO, **settings}
    plain = {k: v for k, v in settings.items() if k != "checkpoint_backbone"}
    together = joint(make_model, "together", **plain)
    assert_same(joint(make_model, execution, **settings), together, images, targets)


@pytest.mark.parametrize("router", ["UniformRouter", "EvidenceRouter"])
@pytest.mark.parametrize(
    ("again", "passes"), [(None, (1, 1, 1)), ("extra", (1, 2, 2)), ("all", (2, 2, 2))]
)
def test_only_the_passes_that_are_named_are_computed_again(
    make_model, batch, router, again, passes
):
    images, targets = batch(2)
    settings = dict(experts=TWO, router=dict(type=router), checkpoint_backbone=again)
    model = make_model(expert_loss_weight=1.0, **settings).train()
    seen = Counter()
    block = block_switches(model.backbone)[0].blocks[0]
    block.register_forward_pre_hook(lambda _, args: seen.update([args[0].shape[1]]))
    losses = model(images, targets=targets, mode="loss")
    sum(v for k, v in losses.items() if "loss" in k).backward()
    # The images themselves, then as ZoomNet reads them, smaller and larger.
    small, own, large = sorted(seen)
    assert (seen[own], seen[small], seen[large]) == passes


def test_experts_on_some_images_only(make_model, force, batch):
    images, targets = (x.double() for x in batch(3))
    logits = [[9.0, 8, 0, 0], [0, 0, 9.0, 8], [9.0, 0, 8, 0]]
    models = [
        force(joint(make_model, how, router=dict(type="EvidenceRouter", width=16)), logits)
        for how in ("sequential", "together")
    ]
    assert_same(*models, images, targets)


def samples(*datasets):
    found = [CODDataSample() for _ in datasets]
    for sample, name in zip(found, datasets, strict=True):
        sample.set_metainfo(dict(dataset=name) if name else {})
    return found


@pytest.mark.parametrize("execution", ["together", "sequential", "checkpoint"])
def test_an_expert_learns_from_its_data_sets_alone(make_model, batch, execution):
    images, targets = (x.double() for x in batch(3))
    experts = dict(TWO, ujsc=dict(MINIATURES["ujsc"], learns_from=("new",)))
    plain = dict(TWO, ujsc=MINIATURES["ujsc"])
    model = joint(make_model, execution, experts=experts).eval()  # of all images' statistics
    given = samples("old", "new", "old")
    losses = model.loss(images, targets, given)
    of_one = joint(make_model, execution, experts=plain).eval().loss(images[1:2], targets[1:2])
    for key in (k for k in losses if k.startswith("ujsc.loss")):
        torch.testing.assert_close(losses[key], of_one[key] / 3)
    torch.testing.assert_close(
        losses["sinet.loss_structure"],
        joint(make_model, execution, experts=plain)
        .eval()
        .loss(images, targets)["sinet.loss_structure"],
    )
    losses = model.loss(images, targets, samples("old", "old", "old"))
    model.parse_losses(losses)[0].backward()
    assert all(not p.grad.any() for p in model.experts.ujsc.parameters())
    assert any(p.grad.any() for p in model.experts.sinet.parameters())
    with pytest.raises(ValueError, match=r"experts.ujsc.learns_from=.* which data set"):
        model.loss(images, targets, samples("old", None, "new"))


def test_a_loss_from_which_nothing_learns_is_not_computed(make_model, batch):
    images, targets = (x.double() for x in batch(2))
    held = joint(make_model, "together", experts=TWO, frozen=("backbone", "experts.sinet"))
    losses = held.loss(images, targets)
    assert {k.split(".")[0] for k in losses if ".loss_" in k} == {"zoomnet"}
    assert {"IoU_sinet", "IoU_zoomnet"} <= losses.keys()
    # The backbone would learn from it.
    losses = joint(make_model, "together", experts=TWO, frozen=("experts.sinet",)).loss(
        images, targets
    )
    assert {k.split(".")[0] for k in losses if ".loss_" in k} == {"sinet", "zoomnet"}


def test_checkpoint_with_a_mixture_loss(make_model, force, batch):
    images, targets = (x.double() for x in batch(2))
    stage3 = dict(
        router=dict(type="EvidenceRouter", width=16),
        mixture_loss=dict(type="StructureLoss"),
        train_dispatch="dense",
        expert_loss_weight=0.3,
    )
    logits = [[2.0, 1, 0, 0], [0, 1, 2, 0]]
    models = [force(joint(make_model, how, **stage3), logits) for how in ("checkpoint", "together")]
    assert_same(*models, images, targets)


def test_sequential_with_a_mixture_loss_is_refused(make_model):
    with pytest.raises(ValueError, match=r"sequential.*mixture_loss.*'checkpoint'"):
        joint(make_model, "sequential", mixture_loss=dict(type="StructureLoss"))
    with pytest.raises(ValueError, match=r"expert_execution='serial'.*'sequential'"):
        joint(make_model, "serial")
    with pytest.raises(ValueError, match=r"checkpoint_backbone=True.*'extra'"):
        joint(make_model, "together", checkpoint_backbone=True)


def test_accumulation_adds_up_and_a_second_backward_is_refused(make_model, batch):
    model = joint(make_model, "sequential", torch.float32, experts=dict(sinet=MINIATURES["sinet"]))
    images, targets = batch(2)
    model.eval()  # running statistics do not move
    losses = model(images, targets=targets, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward(retain_graph=True)
    once = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()
    (0.5 * model.parse_losses(model(images, targets=targets, mode="loss"))[0]).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, 1.5 * once[name], rtol=1e-4, atol=1e-7)


def test_the_activations_of_one_expert_at_a_time(make_model, batch):
    images, targets = batch(2, 96, 96)
    frozen = dict(frozen=("backbone",))  # the heads alone

    def saved(execution, names=tuple(MINIATURES)):
        experts = {name: MINIATURES[name] for name in names}
        model = joint(make_model, execution, torch.float32, experts=experts, **frozen)
        return saved_bytes(model, images, targets)

    alone = {name: saved("together", (name,)) for name in MINIATURES}
    together, sequential = saved("together"), saved("sequential")
    assert together > 0.9 * sum(alone.values())
    assert sequential < 1.1 * max(alone.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(make_model, batch, dtype):
    """Nearly the gradients of running together, and none of them lost."""
    images, targets = batch(2)
    some = {name: MINIATURES[name] for name in ("pranet", "ujsc")}
    result = {}
    for execution in ("together", "sequential", "checkpoint"):
        model = joint(make_model, execution, torch.float32, experts=some)
        scale = 1024.0 if dtype == torch.float16 else 1.0
        if execution == "sequential":
            model.run_state.scale_loss = lambda loss, scale=scale: loss * scale
        with torch.autocast("cpu", dtype):
            losses = model(images, targets=targets, mode="loss")
        (model.parse_losses(losses)[0] * scale).backward()
        result[execution] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for execution in ("sequential", "checkpoint"):
        assert result[execution].keys() == result["together"].keys()
        for name, value in result["together"].items():
            other = result[execution][name]
            assert torch.isfinite(other).all() and other.dtype == torch.float32
            assert (other - value).norm() <= 0.15 * value.norm() + 1e-6, (execution, name)


def test_overflow_reaches_the_loss_scaler():
    x = torch.ones(3, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)

    def run(levels):
        return None, dict(a=(levels[0] * weight).sum() * 1e30)

    _, losses = forward_backward(run, [x * 1], [weight], lambda loss: loss * 1e30)
    (losses["a"] * 1e30).backward()
    assert not torch.isfinite(weight.grad).any() and not torch.isfinite(x.grad).any()


def test_small_gradients_survive_half_precision():
    x = torch.ones(3, requires_grad=True)

    def run(levels):
        return None, dict(a=(levels[0].half() * torch.ones(3).half()).float().sum() * 1e-8)

    for scale_loss in (lambda loss: loss * 2.0**16, None):
        x.grad = None
        with torch.autocast("cpu", torch.float16):
            _, losses = forward_backward(run, [x * 1], [], scale_loss)
        losses["a"].backward()
        torch.testing.assert_close(x.grad, torch.full((3,), 1e-8), rtol=0.02, atol=0)


JOINT = dict(router=dict(type="UniformRouter"), expert_loss_weight=1.0)


def test_maps_divides_by_the_maps_that_an_expert_supervises(make_model, batch):
    images, targets = batch(2)
    plain = make_model(**JOINT).eval()(images, targets=targets, mode="loss")
    maps = make_model(**JOINT, expert_loss_normalization="maps").eval()
    shared = maps(images, targets=targets, mode="loss")
    for name, count in dict(sinet=4, pranet=4, ujsc=2, zoomnet=1).items():
        for key in (key for key in plain if key.startswith(f"{name}.loss")):
            torch.testing.assert_close(shared[key] * count, plain[key])


def test_unknown_normalization_is_told(make_model):
    with pytest.raises(ValueError, match=r"'gradient' is unknown; use None or 'maps'"):
        make_model(**JOINT, expert_loss_normalization="gradient")

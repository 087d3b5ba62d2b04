from functools import partial

import pytest
import torch

from codmoe.models.dispatch import run_everything
from codmoe.models.frozen_cache import FrozenCache
from codmoe.structures import CODDataSample, ExpertOutput

SETTINGS = dict(
    frozen=("backbone", "experts"),
    train_dispatch="dense",
    mixture_loss=dict(type="StructureLoss"),
    routing_losses=dict(distil=dict(type="ExpertIoUDistillation"), z=dict(type="RouterZLoss")),
)


@pytest.fixture
def stage_2(make_model):
    """A model of stage 2 whose router says something."""

    def make(**cache):
        model = make_model(**SETTINGS).train()
        torch.nn.init.normal_(model.router.fuse[-1].weight)
        if cache:
            model.run_state.frozen_cache = FrozenCache(**cache)
        return model

    return make


@pytest.fixture
def runs(monkeypatch):
    """How many images the backbone saw at each call, at scale 1."""
    from codmoe.models.backbones.timm_pyramid import TimmPyramid

    seen = []
    real = TimmPyramid.forward

    def forward(self, images):
        if images.shape[-1] == 64:
            seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(TimmPyramid, "forward", forward)
    return seen


def samples(*keys):
    return [CODDataSample(metainfo=dict(cache_key=key)) for key in keys]


def step(model, images, targets, *keys):
    torch.manual_seed(5)  # the router's noise
    model.zero_grad()
    model.run_state.progress = 0.25
    losses = model(images, samples(*keys), targets, mode="loss")
    model.parse_losses(losses)[0].backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {key: value.detach() for key, value in losses.items()}, grads


def assert_same(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], msg=lambda m, k=key: f"{k}: {m}", **tolerance)


class Rounded:
    """Stands for a cache: everything is computed, and these rows rounded as what was kept is."""

    def __init__(self, dtype, rows):
        self.dtype, self.rows = dtype, rows

    def through(self, keys, images, compute):
        def kept(x):
            x = x.clone()
            x[self.rows] = x[self.rows].to(self.dtype).to(x.dtype)
            return x

        pyramid, outputs = compute(images)
        return [kept(level) for level in pyramid], {
            name: ExpertOutput(kept(output.logits)) for name, output in outputs.items()
        }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_losses_and_gradients_are_those_without_a_cache(stage_2, batch, runs, dtype):
    images, targets = batch(3)
    plain, model = stage_2(), stage_2(dtype=dtype)
    # An image by itself is rounded otherwise than in a batch, which the router's gradients magnify:
    # in float64 it is not.
    images = images.double()
    for part in (plain.backbone, plain.experts, model.backbone, model.experts):
        part.double()
    tight = dict(atol=1e-6, rtol=1e-5)

    def reference(order, known):
        plain.run_state.frozen_cache = Rounded(getattr(torch, dtype), known)
        expected = step(plain, images[order], targets[order], *"xyz")
        runs.pop()
        return expected

    assert model.state_dict().keys() == plain.state_dict().keys()
    expected = reference([0, 1, 2], [0, 1, 2])
    first = step(model, images, targets, "a", "b", "c")
    assert_same(first, expected, **tight)
    assert runs == [3]
    # A run that is resumed computes what an uninterrupted one reads.
    assert_same(step(model, images, targets, "a", "b", "c"), first, atol=0, rtol=0)
    assert runs == [3]
    # In another order, then with an image in between that is new.
    order = [2, 0, 1]
    turned = step(model, images[order], targets[order], "c", "a", "b")
    assert runs == [3]
    assert_same(turned, reference(order, [0, 1, 2]), **tight)
    mixed = step(model, images[order], targets[order], "c", "new", "b")
    assert runs == [3, 1]
    assert_same(mixed, reference(order, [0, 1, 2]), **tight)


def test_what_is_computed_lies_in_memory_as_what_is_read(stage_2, batch):
    """Or it is summed up in another order: a resumed run would not be the same to the last bit."""
    images, targets = (x.contiguous(memory_format=torch.channels_last) for x in batch(2))
    model = stage_2(dtype="float16").to(memory_format=torch.channels_last)
    cache, layouts = model.run_state.frozen_cache, []
    compute = partial(run_everything, model.passes(), model.expert_parts)
    for _ in range(2):
        pyramid, outputs = cache.through(["c", "d"], images, compute)
        found = [*pyramid, *(output.logits for output in outputs.values())]
        layouts.append([(x.shape, x.stride()) for x in found])
    assert layouts[0] == layouts[1]
    first = step(model, images, targets, "a", "b")
    assert_same(step(model, images, targets, "a", "b"), first, atol=0, rtol=0)


def test_the_router_sees_the_images_it_is_given(stage_2, batch):
    """Only frozen results come from memory: they belong to the key, the images to the batch."""
    images = batch(2)[0]
    model = stage_2(dtype="float32").eval()
    with torch.no_grad():
        first = model.mixture(images, dense=True, data_samples=samples("a", "b"))
        other = model.mixture(images + 1, dense=True, data_samples=samples("a", "b"))
    torch.testing.assert_close(first[2]["ujsc"].logits, other[2]["ujsc"].logits)
    assert not torch.allclose(first[1].logits, other[1].logits)


def test_prediction_uses_it_too(stage_2, batch, runs):
    images = batch(2)[0]
    model = stage_2(dtype="float32").eval()
    model.evaluate_all_experts = True
    with torch.no_grad():
        first = model(images, samples("a", "b"), mode="predict")
        count = len(runs)
        again = model(images, samples("a", "b"), mode="predict")
        assert len(runs) == count
        model.run_state.frozen_cache = None
        plain = model(images, samples("a", "b"), mode="predict")
    for a, b, c in zip(first, again, plain, strict=True):
        torch.testing.assert_close(a.pred_prob, b.pred_prob, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.pred_prob, c.pred_prob, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(b.expert_probs["ujsc"], c.expert_probs["ujsc"])


def test_the_limit_is_respected_and_the_rest_is_computed(stage_2, batch, runs):
    images, targets = batch(3)
    step(model := stage_2(dtype="float32"), images, targets, "a", "b", "c")
    one = model.run_state.frozen_cache.bytes / 3
    small = stage_2(dtype="float32", limit_gb=2.5 * one / 1e9)
    expected = step(small, images, targets, "a", "b", "c")
    assert len(small.run_state.frozen_cache) == 2 and small.run_state.frozen_cache.bytes == 2 * one
    runs.clear()
    assert_same(step(small, images, targets, "a", "b", "c"), expected, atol=1e-5, rtol=1e-4)
    assert runs == [1] and len(small.run_state.frozen_cache) == 2
    text = small.run_state.frozen_cache.summary(3)
    assert "2 of 3 image views" in text and "the limit is reached" in text
    assert "limit is reached" not in model.run_state.frozen_cache.summary(3)


def test_an_image_twice_in_a_batch_counts_once(stage_2, batch):
    images, targets = batch(2)
    model = stage_2(dtype="float32")
    step(model, images[[0, 0]], targets[[0, 0]], "a", "a")
    once = model.run_state.frozen_cache.bytes
    step(model, images, targets, "a", "b")
    assert len(model.run_state.frozen_cache) == 2 and model.run_state.frozen_cache.bytes == 2 * once


def test_sizes_of_one_view_are_told_apart(stage_2, batch):
    model = stage_2(dtype="float32")
    for size in (64, 96, 64):
        images, targets = batch(2, size, size)
        expected = step(stage_2(), images, targets)
        got = step(model, images, targets, "a", "b")
        assert_same(got, expected, atol=1e-5, rtol=1e-4)
    assert len(model.run_state.frozen_cache) == 4


def test_samples_without_keys_are_not_kept(stage_2, batch):
    model = stage_2(dtype="float32")
    step(model, *batch(2))
    assert len(model.run_state.frozen_cache) == 0


def test_half_precision_results_come_back_as_they_were(stage_2, batch):
    images, targets = batch(2)
    model = stage_2(dtype="float16")
    with torch.autocast("cpu", torch.bfloat16):
        first = step(model, images, targets, "a", "b")
        again = step(model, images, targets, "a", "b")
        _, outputs = model.run_state.frozen_cache.through(["a", "b"], images, None)
    assert_same(again, first, atol=2e-2, rtol=5e-2)
    layout = next(iter(model.run_state.frozen_cache._layouts.values()))
    assert {p.dtype for p in layout if p.group == "logits"} == {
        o.logits.dtype for o in outputs.values()
    }


def test_training_in_half_precision_does_not_round_validation(stage_2, batch):
    """Both have one size; validation runs without autocast and is to read what it computed."""
    images, targets = batch(2)
    model = stage_2(dtype="float32")
    cache = model.run_state.frozen_cache

    def maps():
        with torch.no_grad():
            return model.eval().mixture(images, dense=True, data_samples=samples("v", "w"))[2]

    first = maps()
    with torch.autocast("cpu", torch.bfloat16):
        step(model.train(), images, targets, "a", "b")
        step(model, images, targets, "v", "w")
    assert cache.misses == 6  # of equal keys, but of another precision
    again = maps()
    assert cache.hits == 2
    for name, output in again.items():
        torch.testing.assert_close(output.logits, first[name].logits, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_overflows_half_precision_is_computed_again(stage_2, batch, dtype):
    images, targets = batch(2)
    model = stage_2(dtype=dtype)
    # A level of 1e5 and more, of which float16 knows nothing: infinity, and NaN in every expert.
    norm = next(m for m in model.backbone.body.modules() if isinstance(m, torch.nn.Conv2d))
    norm.weight.data.mul_(1e7)
    norm.bias.data.fill_(1e7)
    with torch.autocast("cpu", torch.float16):
        first = step(model, images, targets, "a", "b")
        again = step(model, images, targets, "a", "b")
    assert model.run_state.frozen_cache.overflows == 2
    for losses, grads in (first, again):
        assert all(value.isfinite().all() for value in (*losses.values(), *grads.values()))
    assert_same(again, first, atol=2e-2, rtol=5e-2)


def test_frozen_parts_that_are_broken_are_told(stage_2, batch):
    model = stage_2(dtype="float16")
    model.experts["sinet"].requires_grad_(False).apply(
        lambda m: m.weight.fill_(torch.nan) if isinstance(m, torch.nn.Conv2d) else None
    )
    with pytest.raises(ValueError, match=r"NaN or infinity, in float32 too: logits sinet; .*init_"):
        step(model, *batch(2), "a", "b")


def test_impossible_settings_are_told():
    for wrong, word in ((dict(limit_gb=0), "limit_gb=0"), (dict(dtype="half"), "'float16'")):
        with pytest.raises(ValueError, match=word):
            FrozenCache(**wrong)
    with pytest.raises(ValueError, match="device='disk'"):
        FrozenCache(device="disk")

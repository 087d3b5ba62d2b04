from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from itertools import combinations
from threading import Lock

import pytest
import torch
from miniature import SMALL_BODY
from recorded_work import RecordingPreparer
from timm.layers import BatchNormAct2d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from codmoe.compiled import prepared as prepared_module
from codmoe.compiled.buffers import Buffers
from codmoe.compiled.copies import PackedLinear, PartCopies, fold_batch_norm, pack_linear
from codmoe.compiled.forms import OneChannel
from codmoe.compiled.prepared import CompiledMoE
from codmoe.models.combiners import ProbabilityCombiner
from codmoe.models.routers import FixedRouter
from codmoe.models.routers.base import Router
from codmoe.registry import MODELS

TOLERANCE = 1e-4
"""Of a probability, in float32."""
NAMES = ("pranet", "sinet", "ujsc", "zoomnet")
MODEL = dict(
    type="ModelLevelMoE",
    backbone=dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY),
    experts=dict(
        pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
        sinet=dict(type="SINetExpert", channels=8),
        ujsc=dict(type="UJSCExpert", channels=8, confidence_channels=8),
        zoomnet=dict(type="ZoomNetExpert", channels=8),
    ),
    router=dict(type="EvidenceRouter", width=16),
    top_k=2,
)
SMALL = dict(batches=(1, 2, 4), groups=(1, 2, 3))


class ByBrightness(Router):
    """Which two experts depends on how bright an image is."""

    def score(self, images, pyramid):
        angle = 40 * images.mean((1, 2, 3)) + 0 * pyramid[0].float().mean((1, 2, 3))
        return torch.stack([torch.sin(angle * f + f) for f in (1, 2, 3, 5)], dim=1)


def build(**changes):
    torch.manual_seed(0)
    model = MODELS.build({**MODEL, **changes})
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # as if trained
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = 1.0
    with torch.no_grad():
        model.train().mixture(torch.randn(4, 3, 64, 64), dense=True)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    model = build()
    model.router = ByBrightness(
        in_channels=model.backbone.channels, expert_names=model.expert_names, top_k=2
    )
    return model


@pytest.fixture(params=["eager", "recorded"])
def preparer(request, monkeypatch):
    """The prepared model as it runs on the CPU, and with graphs that are recorded and repeated."""
    if request.param == "recorded":
        monkeypatch.setattr(prepared_module, "Preparer", lambda *_: RecordingPreparer())
    return request.param


def eager(model, images, **options):
    with torch.no_grad():
        return model.mixture(images, **options)


def difference(a, b):
    assert a.shape == b.shape
    return (a.sigmoid() - b.sigmoid()).abs().max().item()


def test_mixed_routes_padded_groups_and_larger_batches_give_the_eager_result(model, preparer):
    images = torch.randn(7, 3, 70, 64)
    prepared = CompiledMoE(model, **SMALL)
    expected, decision, _ = eager(model, images)
    assert len({tuple(sorted(pair)) for pair in decision.indices.tolist()}) > 2
    for _ in range(2):  # prepared, and again with another order of what was prepared
        logits, chosen, _ = prepared.mixture(images)
        assert torch.equal(chosen.indices, decision.indices)
        assert torch.allclose(chosen.weights, decision.weights, atol=1e-4)
        assert difference(logits, expected) < TOLERANCE
    flipped = images.flip(0)
    assert difference(prepared(flipped), eager(model, flipped)[0]) < TOLERANCE
    if preparer == "recorded":
        assert not any(piece.reason for piece in prepared.pieces), prepared.report
        assert prepared.prepare.replays > 10


def test_a_grown_mixture_gives_the_eager_result():
    model, images = build(newcomers=("ujsc",)), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        for router in (model.router.old, model.router.evidence):
            torch.nn.init.normal_(router.fuse[-1].weight, std=2)
        model.router.evidence.fuse[-1].bias.zero_()
    expected, decision, _ = eager(model, images)
    assert (decision.indices == model.expert_names.index("ujsc")).any()
    logits, chosen, _ = CompiledMoE(model, **SMALL).mixture(images)
    assert torch.equal(chosen.indices, decision.indices)
    assert difference(logits, expected) < TOLERANCE
    half = CompiledMoE(model, dtype="bf16", **SMALL).copies.modules["router"]
    assert half.old.convolution_dtype == half.evidence.convolution_dtype == torch.bfloat16


def test_merged_heads_compute_the_same_and_follow_the_model():
    """As they do where code is compiled on a GPU."""
    changed = build()
    copies = PartCopies(changed, "fp32", "channels_last", fused=True)
    merged = [m for part in copies.modules.values() for m in part.modules()]
    assert sum(type(m) is OneChannel for m in merged) >= 2
    images = torch.randn(2, 3, 64, 64)
    for _ in range(2):
        with torch.no_grad():
            pyramid = changed.backbone(images)
            for name in ("sinet", "ujsc"):
                expected = changed.experts[name](images, [pyramid]).logits
                found = copies.modules[f"experts.{name}"](images, [pyramid]).logits
                assert (found - expected).abs().max() < 1e-4 * expected.std()
            for parameter in changed.parameters():
                parameter.mul_(0.9)
        copies.refresh()


def test_a_router_in_16_bits_follows_the_model():
    model, images = build(), torch.randn(2, 3, 64, 64)
    prepared = CompiledMoE(model, dtype="bf16", **SMALL)
    prepared(images)
    with torch.no_grad():
        torch.nn.init.normal_(model.router.fuse[-1].weight)
        for parameter in model.parameters():
            parameter.mul_(0.9)
    fresh = CompiledMoE(model, dtype="bf16", **SMALL)
    assert torch.equal(prepared.mixture(images)[1].logits, fresh.mixture(images)[1].logits)


def test_tf32_is_switched_on_for_the_router_alone(model):
    copies, switch = PartCopies(model, "bf16", "channels_last"), torch.backends.cuda.matmul
    assert copies.in_tf32(abs) is abs, "a CPU has none"
    copies.device = torch.device("cuda")
    before = switch.allow_tf32
    assert copies.in_tf32(lambda: switch.allow_tf32)()
    assert switch.allow_tf32 == before
    copies.dtype = "fp32"
    assert copies.in_tf32(abs) is abs


def test_threads_do_not_write_into_each_others_buffers(model):
    prepared = CompiledMoE(model, **SMALL)
    batches = [torch.randn(2, 3, 64, 64) for _ in range(8)]
    expected = [prepared(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(prepared, batches), expected, strict=True):
            assert torch.equal(found, wanted)


def test_every_route_gives_the_eager_result(model, preparer):
    routes = [pair for k in (1, 2) for pair in combinations(NAMES, k)]
    images, copy = torch.randn(1, 3, 64, 64), deepcopy(model)
    prepared = CompiledMoE(model, **SMALL)
    for route in routes:
        copy.router = FixedRouter(
            in_channels=model.backbone.channels,
            expert_names=model.expert_names,
            weights=dict.fromkeys(route, 1.0),
        )
        expected = eager(copy, images)[0]
        for _ in range(2):
            assert difference(prepared(images, names=route), expected) < TOLERANCE, route
    assert difference(prepared(images), eager(model, images)[0]) < TOLERANCE, "the router's own"


def test_a_forced_route_is_written_once_and_tells_each_batchs_evidence(model, preparer):
    prepared, calls = CompiledMoE(model, **SMALL), []
    first, second = torch.randn(2, 1, 3, 64, 64)
    one, other = NAMES[:2], NAMES[2:]
    expected = [prepared.mixture(images)[1].probabilities for images in (first, second)]
    buffers = next(iter(prepared.buffers.values()))
    for images, route, probabilities in (
        (first, one, expected[0]),
        (second, one, expected[1]),
        (second, other, expected[1]),
        (first, one, expected[0]),
    ):
        decision = prepared.mixture(images, names=route)[1]
        assert torch.equal(decision.probabilities, probabilities)
        assert [NAMES[i] for i in decision.indices[0].tolist()] == list(route)
        calls.append(buffers.forced[2])
    assert calls[0] is calls[1] and calls[1] is not calls[2]
    assert calls[0].indices is calls[3].indices, "a graph reads it there"


@pytest.mark.parametrize("own", [{}, dict(pranet=1, ujsc=1), dict(sinet=2, zoomnet=2)])
def test_experts_of_other_image_scales_and_shared_ones(preparer, own):
    """As the model itself computes them, also where two experts read the same scale, and where some
    have last blocks of their own.
    """
    experts = dict(
        pranet=dict(MODEL["experts"]["pranet"], input_scale=1.5, output_stride=4),
        sinet=dict(MODEL["experts"]["sinet"], input_scale=1.5, output_stride=4),
        ujsc=dict(MODEL["experts"]["ujsc"], input_scale=0.5, dense=True),
        zoomnet=MODEL["experts"]["zoomnet"],
    )
    experts = {n: dict(cfg, own_blocks=own.get(n, 0)) for n, cfg in experts.items()}
    model = build(experts=experts, top_k=3, shared_experts=("zoomnet",))
    model.router = ByBrightness(
        in_channels=model.backbone.channels, expert_names=model.expert_names, top_k=3
    )
    model.router.shared = (model.expert_names.index("zoomnet"),)
    images = torch.randn(5, 3, 64, 96)
    prepared = CompiledMoE(model, **SMALL)
    expected, decision, _ = eager(model, images)
    assert (decision.indices == model.router.shared[0]).sum(1).tolist() == [1] * 5
    for _ in range(2):
        assert difference(prepared(images), expected) < TOLERANCE


def test_a_scale_that_several_chosen_experts_read_is_made_once():
    experts = {
        name: dict(MODEL["experts"][name], input_scale=1.5) for name in ("pranet", "sinet", "ujsc")
    }
    model = build(experts=experts, top_k=2)
    model.router = ByBrightness(
        in_channels=model.backbone.channels, expert_names=model.expert_names, top_k=2
    )
    model.router.score = lambda images, _: torch.tensor([[1.0, 1, 0], [0, 1, 1]])[: len(images)]
    prepared, sizes = CompiledMoE(model, **SMALL), []
    prepared.copies.modules["backbone"].register_forward_pre_hook(
        lambda _, args: sizes.append(tuple(args[0].shape))
    )
    images = torch.randn(2, 3, 64, 64)
    assert difference(prepared(images), eager(model, images)[0]) < TOLERANCE
    assert sizes == [(2, 3, 64, 64), (2, 3, 96, 96)]


def test_a_combiner_that_learns(preparer):
    kept = dict(type="LogitCombiner", learn_temperature=True, temperature=1.5, offset=0.2)
    model = build(combiner=kept)
    torch.nn.init.constant_(model.combiner.log_temperature, 0.3)
    torch.nn.init.normal_(model.router.fuse[-1].weight)
    images = torch.randn(3, 3, 64, 64)
    assert difference(CompiledMoE(model, **SMALL)(images), eager(model, images)[0]) < TOLERANCE


def test_cost_follows_the_pairs_of_image_and_expert_and_the_host_waits_once(model, monkeypatch):
    prepared = CompiledMoE(model, batches=(8,), groups=range(1, 8))
    images = torch.randn(8, 3, 64, 64)
    prepared(images)
    pairs = torch.bincount(prepared.mixture(images)[1].indices.flatten(), minlength=4).tolist()
    seen, waits = {}, []
    for name in NAMES:
        expert = prepared.copies.modules[f"experts.{name}"]
        expert.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(len(args[0]))
        )
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: waits.append(x) or tolist(x))
    prepared(images)
    assert len(waits) == 1
    exact = {name: [count] for name, count in zip(NAMES, pairs, strict=True) if count}
    assert seen == exact, "each expert once, on its own images alone"


def test_a_prepared_model_follows_the_weights_and_refuses_other_parts(model, preparer):
    model, images = deepcopy(model), torch.randn(2, 3, 64, 64)
    prepared = CompiledMoE(model, **SMALL)
    before = prepared(images)
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.experts.parameters()):
            parameter.mul_(0.9)
    expected = eager(model, images)[0]
    assert difference(before, expected) > 10 * TOLERANCE
    assert difference(prepared(images), expected) < TOLERANCE
    packed = any(isinstance(m, PackedLinear) for m in prepared.copies.modules["backbone"].modules())
    assert packed == (preparer == "eager"), "no graph would see that they are packed again"
    model.router = deepcopy(model.router)
    if preparer == "recorded":
        with pytest.raises(ValueError, match="replaced"):
            prepared(images)


def test_a_packed_layer_follows_a_weight_that_is_written_replaced_or_moved():
    layer = torch.nn.Linear(8, 4).requires_grad_(False)
    pack_linear(layer)
    if not isinstance(layer, PackedLinear):
        pytest.skip("torch without oneDNN")
    x = torch.randn(3, 8)

    def right():
        return torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))

    assert right()
    layer.weight.copy_(torch.randn(4, 8))
    assert right()
    layer.weight = torch.nn.Parameter(torch.randn(4, 8), requires_grad=False)
    layer.weight.mul_(2)  # as often as the one before was
    assert right()
    layer.weight.data = torch.randn(4, 8)
    assert right()


def test_warming_up_what_runs_as_it_is_runs_each_batch_once(model, monkeypatch):
    launched, launch = [], Buffers._launch_as_it_is

    def noted(self, chosen):
        launched.append(self.batch)
        launch(self, chosen)

    monkeypatch.setattr(Buffers, "_launch_as_it_is", noted)
    CompiledMoE(model).warm_up([1, 3], 64)
    assert launched == [1, 3], "there are no groups to prepare"


def negate(model):
    for module in model.experts.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight = torch.nn.Parameter(-module.weight.detach())


def assign(model):
    state = {k: 0.95 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def without_norms(model):
    for parent in list(model.experts.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(parent, name, torch.nn.Identity())


def hook(model):
    def less(module, inputs, output):
        output.logits = output.logits - 1
        return output

    for expert in model.experts.values():
        expert.register_forward_hook(less)


CHANGES = {
    "a tensor": negate,
    "all tensors": assign,
    "submodules": without_norms,
    "hooks": hook,
    "an attribute": lambda model: setattr(model.router, "shared", (0, 3)),
    "top_k": lambda model: setattr(model.router, "top_k", 1),
    "a part": lambda model: setattr(model, "combiner", Shifted(expert_names=model.expert_names)),
    "what cannot be copied": lambda model: setattr(model.experts.sinet, "lock", Lock()),
}


class Shifted(ProbabilityCombiner):
    def forward(self, outputs, decision, size):
        return super().forward(outputs, decision, size) + 1


@pytest.mark.parametrize("change", CHANGES)
def test_where_nothing_is_captured_it_follows_every_change(model, change):
    model, images = deepcopy(model), torch.randn(2, 3, 64, 64)
    prepared = CompiledMoE(model, **SMALL)
    before = prepared(images)
    CHANGES[change](model)
    expected = eager(model, images)[0]
    assert (change == "what cannot be copied") == (difference(before, expected) < TOLERANCE)
    for _ in range(2):
        assert difference(prepared(images), expected) < TOLERANCE


def test_where_nothing_is_captured_any_size_is_prepared_and_the_last_kept(model):
    prepared = CompiledMoE(model, batches=(4,), max_sizes=1)
    for count, size in ((1, 64), (4, 64), (2, 96), (3, 32), (1, 64)):
        images = torch.randn(count, 3, size, 64)
        assert difference(prepared(images), eager(model, images)[0]) < TOLERANCE
    assert len(prepared.buffers) == 1
    names = [piece.name for piece in prepared.pieces]
    assert len(names) == len(set(names)) and "backbone, 2 × 96 × 64" in names


def test_an_attached_model_predicts_for_the_model(model, preparer):
    model = deepcopy(model)
    images = torch.randn(3, 3, 50, 64)
    with torch.no_grad():
        expected = {d: predictions(model, images, d) for d in (False, True)}
        prepared = CompiledMoE(model, **SMALL).attach()
        for dense, values in expected.items():
            got = predictions(model, images, dense)
            assert got.keys() == values.keys()
            assert all(torch.allclose(got[key], values[key], atol=TOLERANCE) for key in got)
        assert prepared.pieces
        count = len(prepared.pieces)
        assert deepcopy(model).run_state.prepared is None
        model(torch.randn(1, 3, 96, 64))
        assert len(prepared.pieces) > count
        prepared.detach()
        model(torch.randn(1, 3, 64, 96))
        assert not any("64 × 96" in piece.name for piece in prepared.pieces)
    prepared.attach()
    assert model(images).requires_grad, "who wants gradients gets the model itself"


def predictions(model, images, dense):
    model.evaluate_all_experts = dense
    result = {}
    for i, sample in enumerate(model(images, mode="predict")):
        result |= {(i, "mixture"): sample.pred_prob, (i, "weights"): sample.routing["weights"]}
        result |= {(i, n): p for n, p in (sample.get("expert_probs") or {}).items()}
    return result


def test_what_cannot_be_prepared_runs_as_it_is_and_says_why(model, monkeypatch):
    class Own(ProbabilityCombiner):
        def forward(self, outputs, decision, size):
            return super().forward(outputs, decision, size) + 1

    other, images = deepcopy(model), torch.randn(2, 3, 64, 64)
    other.combiner = Own(expert_names=model.expert_names)
    prepared = CompiledMoE(other, **SMALL).attach()
    assert "Own has a forward of its own" in prepared.report
    assert torch.equal(prepared(images), eager(model, images)[0] + 1)

    class Asks(ByBrightness):
        def score(self, images, pyramid):
            return super().score(images, pyramid) * (2 if images.mean().item() > 9 else 1)

    monkeypatch.setattr(prepared_module, "Preparer", lambda *_: RecordingPreparer())
    other = deepcopy(model)
    other.router.__class__ = Asks
    prepared = CompiledMoE(other, **SMALL, max_sizes=1)
    assert difference(prepared(images), eager(model, images)[0]) < TOLERANCE
    assert "router, 2 × 64 × 64: eager" in prepared.report
    assert "not capturable" in prepared.report
    assert sum(bool(piece.reason) for piece in prepared.pieces) == 1
    pieces = len(prepared.pieces)
    wide = torch.randn(1, 3, 64, 96)
    assert torch.equal(prepared(wide), eager(other, wide)[0])
    assert len(prepared.pieces) == pieces, "more image sizes than asked for"


def test_what_cannot_be_compiled_runs_uncompiled_and_says_why(model, monkeypatch):
    def compile(function, **options):
        def fails(*args):
            raise RuntimeError("no compiler\nfound")

        return fails if type(function).__name__ == "UJSCExpert" else function

    monkeypatch.setattr(torch, "compile", compile)
    prepared, images = CompiledMoE(model, backend="inductor", **SMALL), torch.randn(1, 3, 64, 64)
    for _ in range(2):
        got = prepared(images, names=NAMES[1:3])
    assert difference(got, CompiledMoE(model, **SMALL)(images, names=NAMES[1:3])) < TOLERANCE
    failed = [piece for piece in prepared.pieces if piece.reason]
    assert [piece.how for piece in failed] == ["eager"] and "sinet + ujsc" in failed[0].name
    assert "not compilable: RuntimeError: no compiler" in prepared.report
    assert {piece.how for piece in prepared.pieces} == {"inductor", "eager"}


def test_batch_norm_is_folded_where_it_follows_a_convolution(model):
    expert = deepcopy(model.experts["zoomnet"])
    norms = sum(isinstance(module, _BatchNorm) for module in expert.modules())
    assert fold_batch_norm(expert) == norms > 10
    shuffled = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 1)).eval()
    assert fold_batch_norm(shuffled) == 0
    activated = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), BatchNormAct2d(3)).eval()
    assert fold_batch_norm(activated) == 0, "its activation would be lost"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (dict(dtype="bf61"), "did you mean 'bf16'"),
        (dict(backend="trt"), "backend='trt' is unknown"),
        (dict(batches=()), "batches="),
        (dict(memory_format="last"), "memory_format='last'"),
    ],
)
def test_unknown_arguments(model, options, fault):
    with pytest.raises(ValueError, match=fault):
        CompiledMoE(model, **options)


def test_half_precision_stays_near(model):
    images = torch.randn(4, 3, 64, 64)
    expected = eager(model, images)[0]
    prepared = CompiledMoE(model, dtype="bf16", memory_format="channels_last", **SMALL)
    logits, decision, _ = prepared.mixture(images)
    assert logits.dtype == decision.weights.dtype == torch.float32
    assert difference(logits, expected) < 0.1
    assert (logits.sigmoid() - expected.sigmoid()).abs().mean() < 0.01


def test_no_part_copies_between_host_and_device_when_it_evaluates(model, monkeypatch):
    """The host would wait for it, and a graph cannot hold it. ``meta`` stands for the device."""
    copies, made = [], ("tensor", "as_tensor", "new_tensor", "from_numpy", "item", "tolist", "cpu")

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
            if func.__name__ in made or len({t.device.type for t in tensors}) > 1:
                copies.append(func.__name__)
            return result

    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    elsewhere = build(combiner=dict(type="ProbabilityCombiner", learn_temperature=True)).to("meta")
    images = torch.empty(2, 3, 64, 64, device="meta")
    with torch.no_grad(), Watch():
        elsewhere.mixture(images, dense=True)
        assert not copies
        torch.tensor([1.0], device="meta")
        torch.ones(2).to("meta")
    assert copies == ["tensor", "to"], "they are seen"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_give_the_eager_result():
    model = build().cuda()
    torch.nn.init.normal_(model.router.fuse[-1].weight, std=3)
    prepared = CompiledMoE(model, dtype="fp32", **SMALL)
    for count in (1, 7, 3, 7):
        images = torch.randn(count, 3, 64, 64, device="cuda")
        expected = eager(model, images)[0]
        assert difference(prepared(images), expected) < 1e-2  # TF32
    assert {piece.how for piece in prepared.pieces} == {"CUDA graph"}, prepared.report

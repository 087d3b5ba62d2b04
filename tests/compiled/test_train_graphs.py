"""Training passes as CUDA graphs: the numbers of eager training, on a stand-in for the graphs."""

import copy
import gc
from collections import Counter
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from miniature import ONE_EXPERT, TWO_EXPERTS, build, log_of, prepared, write_config
from recorded_passes import stand_in, tensors
from timm.layers import DropPath
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.scaling import overrides
from codmoe.compiled import graphs as all_graphs
from codmoe.compiled import speed, train_graphs
from codmoe.compiled.speed import compile_parts, compiled_parts
from codmoe.compiled.train_compile import compile_beforehand, pieces_of
from codmoe.compiled.train_graphs import graph_parts, without_graphs
from codmoe.engine.config import load_config
from codmoe.engine.launch import train

BOTH = dict(backbone=True, experts=True)
# Half the blocks and a head of few layers: operations are what recording and compiling take.
SHALLOW = dict(model=dict(backbone=dict(timm_args=dict(depths=(1, 1, 1, 1)))))
SHORT = dict(model=dict(experts=dict(sinet=dict(_delete_=True, type="FPNExpert", channels=16))))


@pytest.fixture
def graphs(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    for module in (speed, train_graphs):
        monkeypatch.setattr(module, "print_log", lambda text, **_: lines.append(text))
    return lines


@pytest.fixture
def make(tmp_path):
    """``make(stage, *changes)``: a miniature in float64 without anything random."""

    def model_of(stage, *changes):
        torch.manual_seed(0)
        still = dict(model=dict(router=dict(noise=0.0)) if stage == 3 else {}, init_from=None)
        config = write_config(tmp_path, stage, still, SHALLOW, *changes)
        model = build(load_config(config)).train().double()
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if stage == 3:
            model.router.float()  # computes in float32 whatever it is given
        return model

    return model_of


def backward(model, seed=0, size=64, count=2):
    """Loss of one training step; its gradients are left in the parameters."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    targets = torch.zeros(count, 1, size, size)
    targets[..., 8 + seed : 40, 16 : 40 + seed] = 1
    images, targets = (x.to(next(model.backbone.parameters())) for x in (images, targets))
    model.zero_grad()
    loss = model.parse_losses(model(images, targets=targets, mode="loss"))[0]
    loss.backward()
    return loss.detach()


def same(model, other):
    """Weights, statistics and gradients are equal."""
    close = dict(rtol=1e-6, atol=1e-9, equal_nan=False)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), **close)
    gradients = [
        {n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (model, other)
    ]
    assert gradients[0]
    torch.testing.assert_close(*gradients, **close)


def gradients_of(model):
    """All in one line."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def pair(model, options=BOTH):
    """The model, and a copy of it with graphs."""
    other = copy.deepcopy(model)
    graph_parts(other, options)
    return model, other


@pytest.mark.parametrize(
    "stage, execution, dispatch",
    [(1, "together", "sparse"), (1, "sequential", "sparse"), (3, "together", "dense")],
)
def test_steps_are_those_of_eager_training(make, graphs, said, stage, execution, dispatch):
    changes = dict(model=dict(expert_execution=execution, train_dispatch=dispatch))
    eager, graphed = pair(make(stage, changes))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (eager, graphed)]
    for seed in range(3):
        losses = [backward(model, seed) for model in (eager, graphed)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
        same(eager, graphed)
        for optimizer in optimizers:
            optimizer.step()
    # Three scales of the backbone, four experts; said once each.
    assert (graphs.captures, graphs.replays, len(said)) == (7, 21, 7)
    assert sum("CUDA graph for 2 × 3 × 64 × 64 captured in" in line for line in said) == 5


def test_names_and_copies_know_nothing_of_it(make, graphs):
    eager, graphed = pair(make(1, TWO_EXPERTS), dict(experts=True))
    backward(graphed)
    assert graphed.state_dict().keys() == eager.state_dict().keys()
    copied = copy.deepcopy(graphed)  # as EMA makes one
    with torch.no_grad():
        for parameter in graphed.parameters():
            parameter.zero_()
    backward(eager)
    torch.testing.assert_close(backward(copied), backward(eager))
    assert (graphs.captures, graphs.replays) == (2, 2)


def test_a_step_that_is_looked_at_captures_nothing(make, graphs, said):
    """Its backward pass does not exist, so that a capture would fail for good."""
    eager, graphed = pair(make(1, TWO_EXPERTS))
    with without_graphs(graphed):
        backward(graphed)
    assert not graphs.captures and not said
    backward(eager), backward(eager), backward(graphed)
    same(eager, graphed)
    assert graphs.captures == 3


def test_graph_parts_names_what_it_took(make):
    model = make(1, TWO_EXPERTS)
    assert graph_parts(model, None) == graph_parts(model, dict(backbone=False)) == []
    assert graph_parts(model, BOTH) == ["backbone", "experts.pranet", "experts.sinet"]


def test_evaluation_is_left_alone(make, graphs):
    eager, graphed = pair(make(1, TWO_EXPERTS))
    for model in (eager, graphed):
        backward(model)
        model.eval()
    replays, images = graphs.replays, torch.randn(3, 3, 64, 64).double()
    with torch.no_grad():
        assert torch.equal(graphed(images), eager(images))
    graphed(images)  # with gradients, as attribution methods want them
    graphed.train()
    with torch.no_grad():  # as when batch statistics are measured
        graphed(images)
    assert graphs.replays == replays


def hold(model, held):
    """As BackboneWarmupHook does."""
    model.backbone.body.train(not held)
    for parameter in model.backbone.body.parameters():
        parameter.requires_grad_(not held)


@pytest.fixture
def no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_backbone_that_was_held_learns_afterwards(make, graphs, no_collection):
    eager, graphed = pair(make(1, TWO_EXPERTS))
    for held in (True, False):
        for model in (eager, graphed):
            hold(model, held)
        for seed in (0, 1):
            torch.testing.assert_close(backward(eager, seed), backward(graphed, seed))
            same(eager, graphed)
        learns = {p.grad is not None for p in graphed.backbone.body.parameters()}
        assert learns == {not held}
    assert (graphs.captures, graphs.replays) == (6, 12)
    assert graphs.kept == 3  # what was captured while the backbone was held is gone at once


def test_no_two_graphs_that_live_share_a_stream(make, graphs, monkeypatch):
    monkeypatch.setattr(all_graphs, "STREAMS", 8)  # of 32: a capture takes half a second
    _, graphed = pair(make(1, TWO_EXPERTS))
    for step in range(4):
        hold(graphed, held=step % 2 == 0)
        backward(graphed)
    assert graphs.captures > all_graphs.STREAMS and graphs.kept == 3
    regions = [graphed.backbone, *graphed.experts.values()]
    living = [g for region in regions for g in region._compiled_call_impl.graphs.values()]
    assert len({graph.stream.cuda_stream for graph in living}) == len(living) == 3


def test_a_part_keeps_its_graphs_when_no_stream_is_left(make, graphs, said, monkeypatch):
    eager, graphed = pair(make(1, ONE_EXPERT, SHORT))
    backward(eager)
    backward(graphed)
    captures, replays = graphs.captures, graphs.replays
    with monkeypatch.context() as none_left:
        none_left.setattr(all_graphs, "_broken", set(range(33)))
        for _ in range(2):
            torch.testing.assert_close(backward(eager, size=96), backward(graphed, size=96))
            same(eager, graphed)
    backward(eager)
    backward(graphed)
    same(eager, graphed)
    assert (graphs.captures, graphs.replays) == (captures, 2 * replays)
    told = "further sizes of its inputs run without CUDA graph: each of torch's 32 streams has"
    assert [told in line for line in said[captures:]] == [True] * captures


def test_statistics_that_are_held_stay(make, graphs):
    """Only the mode of an inner module changes, not who learns."""
    eager, graphed = pair(make(1, TWO_EXPERTS))
    for model in (eager, graphed):
        backward(model)
        for module in model.experts.sinet.children():
            module.eval()
        backward(model, 1)
    same(eager, graphed)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU the Runner takes it, not the stand-in"
)
def test_a_training_whose_backbone_waits_for_an_epoch(tmp_path, graphs):
    held = dict(default_hooks=dict(warmup=dict(epochs=1)), train_graphs=BOTH)
    config = write_config(tmp_path, 1, TWO_EXPERTS, held, epochs=3)
    start = build(load_config(config)).backbone.state_dict()
    runner = train(prepared(config, tmp_path / "work", **{"train_dataloader.batch_size": 4}))
    log = log_of(tmp_path / "work")
    assert "CUDA graphs for training: backbone, experts.pranet, experts.sinet" in log
    assert log.count("CUDA graph for 4 × 3 × 64 × 64 captured") == 6
    assert (graphs.captures, graphs.replays) == (6, 18)
    end = runner.model.backbone.state_dict()
    assert any(not torch.equal(end[key], start[key]) for key in end)


def test_what_cannot_be_captured_runs_all_the_same(make, graphs, said):
    eager, graphed = pair(make(1, TWO_EXPERTS), dict(experts=True))
    graphs.failure = RuntimeError("operation not permitted\nwhen stream is capturing")
    for seed in (0, 1):
        torch.testing.assert_close(backward(eager, seed), backward(graphed, seed))
        same(eager, graphed)  # statistics, too, which warming up had moved
    assert graphs.replays == 0
    reason = "cannot be captured in a CUDA graph and runs without: RuntimeError: operation not "
    assert len(said) == 2 and all(line.endswith(f"{reason}permitted") for line in said)


def test_a_part_that_waits_for_the_device_runs_all_the_same(make, graphs, said):
    eager, graphed = pair(make(1, TWO_EXPERTS), dict(experts=True))

    def forward(images, pyramids):
        assert pyramids[0][0].mean().item() < 1e9
        return type(graphed.experts.sinet).forward(graphed.experts.sinet, images, pyramids)

    graphed.experts.sinet.forward = forward
    torch.testing.assert_close(backward(eager), backward(graphed))
    same(eager, graphed)
    assert "experts.sinet: cannot be captured" in "".join(said) and graphs.captures == 1


def test_beyond_a_number_of_sizes_it_runs_eagerly(make, graphs, said, monkeypatch):
    monkeypatch.setattr(train_graphs, "MOST_GRAPHS", 2)
    eager, graphed = pair(make(1, TWO_EXPERTS), dict(experts=True))
    for count in (2, 3, 4, 5, 2):
        losses = [backward(model, count=count) for model in (eager, graphed)]
        torch.testing.assert_close(*losses)
        same(eager, graphed)
    assert (graphs.captures, graphs.replays) == (4, 6)
    full = [line for line in said if line.endswith("it runs without CUDA graph")]
    assert len(full) == 2 and "beyond 2 sizes" in full[0]


def test_a_pass_before_the_backward_pass_of_the_last_runs_eagerly(make, graphs):
    """As of an adversarial second batch: both gradients are those of eager code."""
    eager, graphed = pair(make(1, TWO_EXPERTS), dict(backbone=True))
    batches = torch.randn(3, 2, 3, 64, 64).double()
    found = []
    for model in (eager, graphed):
        first, second = (model.backbone(batch) for batch in batches[:2])
        sum(level.square().sum() for level in (*first, *second)).backward()
        found.append([x.detach().clone() for x in (*first, *second)])
    torch.testing.assert_close(*found)
    same(eager, graphed)
    assert graphs.replays == 1
    graphed.backbone(batches[2])  # nobody keeps it, so that no backward pass can come
    model.zero_grad()
    third = graphed.backbone(batches[2])
    assert graphs.replays == 3
    third[0].sum().backward()


def test_results_without_gradient_stay(make, graphs):
    """Of a backbone that is held nothing tells how long its pyramid is read."""
    eager, graphed = pair(make(1, TWO_EXPERTS), dict(backbone=True))
    batches = torch.randn(2, 2, 3, 64, 64).double()
    found = []
    for model in (eager, graphed):
        model.backbone.requires_grad_(False)
        found.append([level for batch in batches for level in model.backbone(batch)])
    torch.testing.assert_close(*found)
    assert graphs.replays == 2 and not any(level.requires_grad for level in found[1])


def test_results_need_gradients_where_those_of_eager_code_do(make, graphs):
    """UJSC hands its image on for its loss."""
    found = []
    for model in pair(make(1), dict(experts=True)):
        images = torch.randn(2, 3, 64, 64).double()
        output = model.experts.ujsc(images, [model.backbone(images)])
        found.append([x.requires_grad for x in tensors(vars(output))])
    assert graphs.replays == 1 and found[0] == found[1] and set(found[0]) == {True, False}


def test_parts_that_are_computed_again_are_left_out(make, said):
    again = dict(expert_execution="checkpoint", checkpoint_backbone="extra")
    model = make(1, TWO_EXPERTS, dict(model=again))
    assert graph_parts(model, BOTH) == []
    sentence = "{}: without CUDA graphs, which {} would overwrite in backward passes"
    assert said == [
        sentence.format("backbone", "checkpoint_backbone='extra'"),
        sentence.format("experts", "expert_execution='checkpoint'"),
    ]


@pytest.fixture
def compiling(monkeypatch):
    """``compiling(backend)``: what ``torch.compile`` uses; calls of compiled code, if any."""
    calls, real = [], torch.compile

    def counted(graph, inputs):
        def call(*args):
            calls.append(graph)
            return graph.forward(*args)

        return call

    def use(backend=counted):
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend=backend))
        return calls

    return use


def test_compiled_code_is_captured(make, graphs, said, compiling):
    calls = compiling()
    eager = make(1, ONE_EXPERT, SHORT)
    both = copy.deepcopy(eager)
    assert compile_parts(both, BOTH) == graph_parts(both, BOTH)
    for seed in range(3):
        torch.testing.assert_close(backward(eager, seed), backward(both, seed))
        same(eager, both)
        # Each of two parts in three warm-ups and one capture, and no more.
        assert len(calls) == 8
    assert (graphs.captures, graphs.replays) == (2, 6) and len(said) == 2
    both.eval()(torch.zeros(1, 3, 64, 64).double())
    assert len(calls) == 8


def no_backend(graph, inputs):
    raise RuntimeError("no compiler here")


def no_backward(graph, inputs):
    """Torch compiles a backward pass when it first runs."""
    from torch._dynamo.backends.common import aot_autograd

    def first(graph, inputs):
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=first, bw_compiler=no_backend)(graph, inputs)


@pytest.mark.parametrize("backend", [no_backend, no_backward])
def test_what_cannot_be_compiled_is_captured_uncompiled(make, graphs, said, compiling, backend):
    compiling(backend)
    eager = make(1, ONE_EXPERT, SHORT)
    both = copy.deepcopy(eager)
    compile_parts(both, dict(experts=True))
    graph_parts(both, dict(experts=True))
    for seed in (0, 1):
        torch.testing.assert_close(backward(eager, seed), backward(both, seed))
        same(eager, both)
    assert (graphs.captures, graphs.replays) == (1, 2) and len(said) == 2
    assert "experts.sinet cannot be compiled and runs uncompiled: " in said[0]
    assert "no compiler here" in said[0] and "captured in" in said[1]


def test_what_cannot_be_captured_runs_compiled(make, graphs, said, compiling):
    calls = compiling()
    eager = make(1, ONE_EXPERT, SHORT)
    both = copy.deepcopy(eager)
    compile_parts(both, dict(experts=True))
    graph_parts(both, dict(experts=True))
    graphs.failure = torch.OutOfMemoryError("CUDA out of memory")
    for seed in (0, 1):
        torch.testing.assert_close(backward(eager, seed), backward(both, seed))
        same(eager, both)
    assert graphs.replays == 0 and len(calls) == 4 + 2
    reason = "cannot be captured in a CUDA graph and runs without: OutOfMemoryError: CUDA out of"
    assert said == [f"experts.sinet: {reason} memory"]


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[operation._opname] += 1
        return operation(*args, **(kwargs or {}))


def test_gradients_of_several_passes_are_added_up_in_few_operations(make, graphs, monkeypatch):
    _, graphed = pair(make(1), dict(backbone=True))
    backward(graphed)
    trained = sum(p.requires_grad for p in graphed.backbone.parameters())
    with Calls() as at_once:
        backward(graphed)
    found = gradients_of(graphed)
    monkeypatch.setattr(train_graphs._GraphedPart, "_parameters", lambda _, graph: graph.parameters)
    with Calls() as singly:
        backward(graphed)
    torch.testing.assert_close(found, gradients_of(graphed))
    # Three image scales, two sums.
    assert singly.counts["add"] - at_once.counts["add"] == 2 * trained > 100
    assert at_once.counts["_foreach_add"] - singly.counts["_foreach_add"] == 2
    assert at_once.counts["clone"] == singly.counts["clone"], "gradients are taken as they are"


def test_faults_of_the_config_are_told(tmp_path):
    config = write_config(tmp_path)
    with pytest.raises(ValueError, match=r"train_graphs=True: give a dict"):
        load_config(config, {"train_graphs": True})
    with pytest.raises(ValueError, match=r"train_graphs: no key 'bakbone'.*'backbone'"):
        load_config(config, {"train_graphs.bakbone": True})
    collected = {"train_graphs.experts": True, "optim_wrapper.accumulative_counts": 2}
    with pytest.raises(ValueError, match=r"accumulative_counts > 1.*a larger batch instead"):
        load_config(config, collected)
    load_config(config, collected | {"train_graphs.experts": False})
    both = {"train_graphs.experts": True, "compile.experts": True}
    load_config(config, both)
    with pytest.raises(ValueError, match=r"compile.mode='max-autotune'.*-no-cudagraphs"):
        load_config(config, both | {"compile.mode": "max-autotune"})


def test_the_scaling_benchmark_joins_both(tmp_path):
    options = overrides("compile+train_graphs")
    assert options.pop("train_graphs") == BOTH
    assert options.keys() >= {f"compile.{part}" for part in BOTH}
    load_config(write_config(tmp_path), options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error:The AccumulateGrad node's stream")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_on_a_gpu(make, precision):
    eager, graphed = pair(make(1).float().cuda())
    for seed in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses = [backward(model, seed, 128) for model in (eager, graphed)]
        torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
        ours, theirs = gradients_of(graphed), gradients_of(eager)
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
        buffers = [dict(m.named_buffers()) for m in (eager, graphed)]
        torch.testing.assert_close(*buffers, rtol=1e-2, atol=1e-3)
    for held in (True, False):  # graphs of the backbone go, those of the experts stay
        for model in (eager, graphed):
            hold(model, held)
        for seed in range(2):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
                for model in (eager, graphed):
                    backward(model, seed, 128)
            ours, theirs = gradients_of(graphed), gradients_of(eager)
            assert (ours - theirs).norm() < 0.02 * theirs.norm()
    regions = [graphed.backbone, *graphed.experts.values()]
    assert [len(r._compiled_call_impl.graphs) for r in regions] == [3, 1, 1, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error:The AccumulateGrad node's stream")
def test_on_a_gpu_compiled_code_is_captured(make, said, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    together = dict(model=dict(expert_execution="together"))
    eager = make(1, ONE_EXPERT, SHORT, together).float().cuda()
    exact, both = copy.deepcopy(eager), copy.deepcopy(eager)
    compile_parts(both, BOTH)
    graph_parts(both, BOTH)
    parts, images = compiled_parts(both), torch.randn(2, 3, 128, 128).cuda()
    looked = partial(both, images, targets=images[:, :1], mode="loss")
    with torch.autocast("cuda", torch.bfloat16), without_graphs(both):
        compile_beforehand(parts, pieces_of(parts, looked))
    both.load_state_dict(exact.state_dict())  # statistics have moved
    for seed in range(3):
        backward(exact, seed, 128)
        with torch.autocast("cuda", torch.bfloat16):
            losses = [backward(model, seed, 128) for model in (eager, both)]
        torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
        right, theirs, ours = (gradients_of(model) for model in (exact, eager, both))
        assert (ours - right).norm() < 1.5 * (theirs - right).norm() + 1e-3 * right.norm()
        buffers = [dict(m.named_buffers()) for m in (eager, both)]
        torch.testing.assert_close(*buffers, rtol=1e-2, atol=1e-3)
    # Nothing else was said: neither that a part runs uncompiled or is traced again, nor that it
    # cannot be captured.
    assert all(part.whole for part in parts.values())
    assert len(said) == 2 and all("captured in" in line for line in said)

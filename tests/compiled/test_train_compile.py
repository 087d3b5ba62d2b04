"""Parts are compiled beforehand, in other processes, into a cache that the training reads."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from miniature import TWO_EXPERTS, build, write_config
from timm.layers import DropPath
from torch import nn
from torch._dynamo.utils import counters

from codmoe.compiled import speed, train_compile
from codmoe.compiled.graphs import captured_anew
from codmoe.compiled.speed import InTraining, compile_parts, compiled_parts, look_of
from codmoe.compiled.train_compile import compile_beforehand, pieces_of
from codmoe.engine.config import load_config

ALL = dict(backbone=True, experts=True, router=True, combiner=True)
LOSSES = dict(losses=True)


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    for module in (speed, train_compile):
        monkeypatch.setattr(module, "print_log", lambda text, **_: lines.append(text))
    return lines


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache, empty."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    counters.clear()
    yield tmp_path / "cache"
    torch._dynamo.reset()


@pytest.fixture
def children(monkeypatch):
    """Pieces that processes were started for; each ends at once, and says what ``answers`` has."""

    class Children(list):
        answers: dict = {}

        def __call__(self, pieces, most):
            for i, piece in enumerate(pieces):
                self.append(piece.label)
                yield i, self.answers.get(piece.name, dict(seconds=1.0, bypassed=0))

    started = Children()
    monkeypatch.setattr(train_compile, "_side_by_side", started)
    return started


@pytest.fixture
def eager(monkeypatch):
    """Whatever torch.compile is given runs as it is, and is counted."""
    calls = []

    def as_it_is(function, **_):
        def call(*args, **kwargs):
            calls.append(function.__self__)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", as_it_is)
    return calls


class Small(nn.Module):
    """A part that compiles in seconds."""

    broken = False

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, maps):
        if self.broken:
            torch._dynamo.graph_break()
        return [torch.tanh(self.layer(maps[0])).sum(1, keepdim=True)]


class Body(nn.Module):
    """A model of one part."""

    def __init__(self):
        super().__init__()
        self.backbone = Small()


def parts_of(model):
    compile_parts(model, dict(backbone=True))
    return compiled_parts(model)


def step(model, count=4):
    images, targets = torch.randn(count, 3, 64, 64), torch.zeros(count, 1, 64, 64)
    targets[..., 10:40, 20:50] = 1
    return model.parse_losses(model(images, targets=targets, mode="loss"))[0]


@pytest.fixture
def ensemble(tmp_path):
    torch.manual_seed(0)
    return build(load_config(write_config(tmp_path, 3, dict(init_from=None)))).train()


def test_a_step_is_looked_at_and_leaves_nothing(ensemble, eager):
    compile_parts(ensemble, ALL)
    parts = compiled_parts(ensemble)
    experts = [f"experts.{name}" for name in ("pranet", "sinet", "ujsc", "zoomnet")]
    assert sorted(parts) == ["backbone", "combiner", *experts, "router"]
    found = []
    pieces = pieces_of(parts, lambda: found.append(step(ensemble)), batch=4)
    labels = [piece.label for piece in pieces]
    # ZoomNet reads the backbone at three scales.
    sizes = [f"backbone 4 × 3 × {side} × {side}" for side in (64, 32, 96)]
    assert sorted(x for x in labels if x.startswith("backbone")) == sorted(sizes)
    assert len(pieces) == 3 + 4 + 2 and not eager and not any(p.watch for p in parts.values())
    with pytest.raises(RuntimeError, match="only looked at"):
        found[0].backward()  # nothing was kept
    by_name = {piece.name: piece for piece in pieces}
    assert by_name["experts.zoomnet"].saved > by_name["experts.sinet"].saved > 0
    assert all(p.is_meta for piece in pieces for p in piece.module.parameters())
    # Images need no gradient, and what the backbone makes of them does.
    (images, pyramids), _ = by_name["experts.sinet"].inputs
    assert not images.requires_grad and all(level.requires_grad for level in pyramids[0])
    # Calls of another size are those of images that were routed to an expert.
    assert not pieces_of(parts, lambda: step(ensemble, 2), batch=4)


def test_losses_are_pieces_too(ensemble, eager):
    other = copy.deepcopy(ensemble)
    compile_parts(ensemble, LOSSES)
    parts = compiled_parts(ensemble)
    pieces = pieces_of(parts, lambda: step(ensemble), batch=4)
    names = [piece.name for piece in pieces]
    judges = [f"experts.{name}.structure_loss.judge" for name in ("pranet", "sinet", "ujsc")]
    assert sorted(names) == sorted(
        [*judges, "mixture_loss.judge", *["experts.ujsc.confidence"] * 3]
    )
    # Of the discriminator's three passes one learns from the decoder's maps, and two are its own.
    learns = [
        [x.requires_grad for x in (piece.inputs[0][1], *piece.module.parameters())]
        for piece in pieces
        if piece.name == "experts.ujsc.confidence"
    ]
    assert sorted((maps, all(own), any(own)) for maps, *own in learns) == [
        (False, True, True),
        (False, True, True),
        (True, False, False),
    ]
    for model in (ensemble, other):
        torch.manual_seed(1)
        step(model).backward()
    assert len(eager) == 7
    for one, two in zip(ensemble.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_what_cannot_be_copied_or_kept_runs_uncompiled_and_says_why(cache, said, children):
    model, maps = Body().train(), torch.randn(2, 8)
    model.backbone.last = 2 * model.backbone.layer.weight  # no leaf, as weight norms have it
    parts = parts_of(model)
    assert not pieces_of(parts, lambda: model.backbone([maps])), "nothing to compile"
    assert parts["backbone"].failed and "backbone cannot be compiled" in said[-1]

    model = Body().train()
    parts = parts_of(model)
    pieces = pieces_of(parts, lambda: model.backbone([maps]))
    (cache / "codmoe").write_text("a file, as if of somebody else")
    assert compile_beforehand(parts, pieces)["compiled"] == 0 and not children
    assert parts["backbone"].failed and "FileExistsError" in said[-1]
    (cache / "codmoe").unlink()
    (cache / "codmoe").mkdir()
    (cache / "codmoe").chmod(0o777)
    parts["backbone"].failed = False
    assert compile_beforehand(parts, pieces)["compiled"] == 0 and not children
    assert parts["backbone"].failed and "chmod 700 it" in said[-1]
    assert model.backbone([maps])[0].requires_grad


def test_marks_tell_pieces_apart(ensemble, eager):
    compile_parts(ensemble, dict(experts=True))
    parts = compiled_parts(ensemble)

    def marks():
        pieces = pieces_of(parts, lambda: step(ensemble))
        return {piece.name: piece.fingerprint() for piece in pieces}

    first = marks()
    assert len(set(first.values())) == 4 and marks() == first
    with torch._inductor.config.patch(compile_threads=3):
        assert marks() == first, "each process that compiles has a number of its own"
    with torch._inductor.config.patch(coordinate_descent_tuning=True):
        assert not set(marks().values()) & set(first.values())
    ensemble.experts["sinet"].search.head[1].weight.requires_grad_(False)
    ensemble.experts["ujsc"].adversarial_weight = 0.2
    second = marks()
    assert {name for name in first if first[name] != second[name]} == {
        "experts.sinet",
        "experts.ujsc",
    }


def test_marks_are_the_same_wherever_packages_lie(ensemble, eager, tmp_path, monkeypatch):
    compile_parts(ensemble, dict(experts=True))
    piece = pieces_of(compiled_parts(ensemble), lambda: step(ensemble))[0]
    marks = set()
    for number, order in enumerate(("ab", "ba")):
        files = [tmp_path / f"{number}{name}.py" for name in order]
        for file, text in zip(files, ("codmoe", "torch"), strict=True):
            file.write_text(text)
        monkeypatch.setattr(train_compile, "_sources", lambda _, files=files: set(map(str, files)))
        marks.add(piece.fingerprint())
    assert len(marks) == 1


def test_what_was_compiled_before_is_not_again(ensemble, eager, cache, children, said):
    compile_parts(ensemble, dict(experts=True))
    parts = compiled_parts(ensemble)
    pieces = pieces_of(parts, lambda: step(ensemble), batch=4)
    figures = compile_beforehand(parts, pieces)
    assert (figures["pieces"], figures["compiled"]) == (4, 4) and len(children) == 4
    assert sum("compiling 4 pieces" in line for line in said) == 1
    step(ensemble)
    assert len(eager) == 4
    step(ensemble, 2)  # nobody has compiled it for two images
    assert len(eager) == 4 and [part.unknown for part in parts.values()] == [1] * 4
    # Another rank, or a later run.
    assert compile_beforehand(parts, pieces)["compiled"] == 0 and len(children) == 4
    shutil.rmtree(cache)
    assert compile_beforehand(parts, pieces)["compiled"] == 4


def test_maps_look_alike_behind_eager_and_compiled_experts(eager):
    """These give other strides than those that the piece was made by, and half precision where
    eager code under autocast resizes in float32.
    """
    part = InTraining(nn.Conv2d(1, 1, 1), "part", None)
    maps = torch.randn(4, 1, 8, 8, requires_grad=True)
    other = maps.as_strided(maps.shape, (64, 1, 8, 1))
    pieces = pieces_of(dict(part=part), lambda: part(other), batch=4)
    part.known = {piece.look for piece in pieces}
    for each in (maps, other, maps.bfloat16()):
        part(each).sum().backward()
    assert len(eager) == 3 and not part.unknown
    # With several channels the strides tell the formats apart.
    part.known = {look_of((torch.randn(4, 2, 8, 8),), {})}
    part.plain = lambda images: images
    part(torch.randn(4, 2, 8, 8).to(memory_format=torch.channels_last))
    assert part.unknown == 1


def test_a_part_whose_process_fails_runs_uncompiled(ensemble, eager, cache, children, said):
    compile_parts(ensemble, dict(experts=True))
    parts = compiled_parts(ensemble)
    pieces = pieces_of(parts, lambda: step(ensemble), batch=4)
    children.answers = {"experts.ujsc": dict(error="exit code -9: killed")}
    compile_beforehand(parts, pieces)
    (told,) = [line for line in said if "runs uncompiled" in line]
    assert told.startswith("experts.ujsc cannot be compiled") and "exit code -9" in told
    step(ensemble)
    assert len(eager) == 3 and ensemble.experts["ujsc"] not in eager
    # The other ranks of this run do not try again; a run that begins later does.
    assert compile_beforehand(parts, pieces)["compiled"] == 0
    children.answers = {}
    train_compile._BEGAN, before = float("inf"), train_compile._BEGAN
    try:
        assert compile_beforehand(parts, pieces)["compiled"] == 1
    finally:
        train_compile._BEGAN = before


def test_processes_are_bounded_by_cores_memory_and_the_device(monkeypatch):
    monkeypatch.setattr(train_compile, "available_cores", lambda: 16)

    class Child:
        bytes = 3

        def __init__(self):
            self.process, self.began = self, time.monotonic()

        def poll(self):
            running.remove(self)
            return 0

        def said(self):
            return {}

    def start(piece, threads):
        running.append(Child())
        beside.append(len(running))
        return running[-1]

    class Fake:
        saved, length, device, device_bytes, label = 0, 5, "cuda", 3, "x"

    monkeypatch.setattr(train_compile, "_start", start)
    gib = 2**30
    for room, memory, most in (
        *((None, None, 4), (7, None, 2), (1, None, 1)),
        *((None, 64 * gib, 4), (None, 10 * gib, 3), (None, gib, 1)),
    ):
        monkeypatch.setattr(train_compile, "_device_room", lambda _, room=room: room)
        monkeypatch.setattr(train_compile, "available_memory", lambda memory=memory: memory)
        running, beside = [], []
        assert sorted(i for i, _ in train_compile._side_by_side([Fake()] * 5, 4)) == list(range(5))
        assert max(beside) == most
    # A long piece gets more threads than a short one.
    pieces = [Fake(), Fake(), Fake()]
    for piece, length in zip(pieces, (300, 100, 1), strict=True):
        piece.length = length
    assert train_compile._threads(pieces) == [16, 8, 1]


HITS = """
import copy, json, sys
import torch
from torch import nn
from torch.func import functional_call
from test_train_compile import Body, compile_beforehand, compile_parts, compiled_parts, counters
from test_train_compile import pieces_of

torch.manual_seed(0)
model = Body().train()
model.backbone.broken = "broken" in sys.argv
other = copy.deepcopy(model)
compile_parts(model, dict(backbone=True))
parts = compiled_parts(model)
x = torch.randn(4, 8)
figures = compile_beforehand(parts, pieces_of(parts, lambda: model.backbone([x])))
assert not figures["not_kept"], figures
for one in (model, other):
    one.backbone([x])[0].square().sum().backward()
gradients = [[p.grad for p in each.parameters()] for each in (model, other)]
torch.testing.assert_close(*gradients)
assert not parts["backbone"].failed
# As a graph is captured: other parameters on other memory, and autocast keeps no casts.
own = {n: nn.Parameter(p.detach().clone()) for n, p in model.backbone.named_parameters()}
with torch.autocast("cpu", enabled=False, cache_enabled=False):
    functional_call(model.backbone, own, ([x],))[0].square().sum().backward()
torch.testing.assert_close([p.grad for p in own.values()], gradients[1])
if figures["loaded"]:
    assert parts["backbone"].whole
    model.backbone.layer.weight.requires_grad_(False)
    assert parts["backbone"].whole
    compiled = parts["backbone"].compiled
    parts["backbone"].compiled = parts["backbone"].plain
    model.backbone([x])
    assert not parts["backbone"].whole  # it asked its guards
print(json.dumps(dict(figures, frames=counters["frames"]["total"])))
"""


def test_the_training_reads_what_another_process_has_compiled(cache):
    """The whole way, of a part that compiles in seconds: gradients, and that no code is traced. In
    processes of their own: the cache tells settings apart that tests before this one leave.
    """
    if shutil.which("g++") is None:
        pytest.skip("torch compiles for a CPU with g++")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))

    def start(*broken):
        command = [sys.executable, "-c", HITS, *broken]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        return done.stdout, [found[key] for key in ("compiled", "loaded", "frames")]

    assert start()[1] == [1, 1, 0]
    assert start()[1] == [0, 1, 0]  # a second training
    (whole,) = (cache / "codmoe").glob("*.whole")
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    text, found = start()
    assert found == [1, 1, 0] and "is compiled anew" in text
    # What is more than one graph is traced by each, and read from torch's cache.
    assert start("broken")[1][:2] == [1, 0]


def test_a_process_says_why_it_failed(cache, said, monkeypatch):
    model = Body().train()
    compile_parts(model, dict(backbone=True))
    parts = compiled_parts(model)
    pieces = pieces_of(parts, lambda: model.backbone([torch.randn(4, 8)]))
    pieces[0].inputs = ((["no tensor"],), {})
    compile_beforehand(parts, pieces)
    (told,) = [line for line in said if "runs uncompiled" in line]
    assert "backbone cannot be compiled" in told and "Error" in told
    # What no process can be given is told likewise.
    model.backbone.hook = lambda: None
    parts["backbone"].failed = False
    pieces = pieces_of(parts, lambda: model.backbone([torch.randn(5, 8)]))
    compile_beforehand(parts, pieces)
    assert "cannot be given to a process" in said[-2]


def loss_of(model, device, half):
    """Of one step on images that are always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator).to(device)
    targets = torch.zeros(4, 1, 64, 64, device=device)
    targets[..., 10:40, 20:50] = 1
    with torch.autocast(device, torch.bfloat16, enabled=half):
        return model.parse_losses(model(images, targets=targets, mode="loss"))[0]


def gradients(model, device, half):
    """Of that step, as one vector."""
    model.zero_grad()
    loss_of(model, device, half).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes minutes on a CPU")
@pytest.mark.parametrize("again", [("together", None), ("checkpoint", "all")])
def test_on_a_gpu_gradients_are_as_near_to_float32_as_eager_ones(tmp_path, cache, said, again):
    torch.manual_seed(0)
    shallow = dict(timm_args=dict(depths=(1, 1, 1, 1)))  # seconds to compile
    parts = dict(router=dict(noise=0.0), backbone=shallow)
    kept = dict(expert_execution=again[0], checkpoint_backbone=again[1])
    still = dict(init_from=None, model=dict(parts, **kept))
    model = build(load_config(write_config(tmp_path, 3, still, TWO_EXPERTS))).train().cuda()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    exact = gradients(copy.deepcopy(model), "cuda", False)
    eager = gradients(copy.deepcopy(model), "cuda", True)
    compile_parts(model, True)
    parts = compiled_parts(model)
    pieces = pieces_of(parts, lambda: loss_of(model, "cuda", True), batch=4)
    compile_beforehand(parts, pieces)
    for _ in range(3):  # torch warms up, captures, and runs what it captured
        torch.compiler.cudagraph_mark_step_begin()
        compiled = gradients(model, "cuda", True)
        assert (compiled - exact).norm() < 1.5 * (eager - exact).norm() + 1e-3 * exact.norm()
    captured = captured_anew()
    assert captured, "nothing was captured"
    torch.compiler.cudagraph_mark_step_begin()
    gradients(model, "cuda", True)
    assert captured_anew() == captured
    # Nothing ran uncompiled, behind compiled experts either, and nothing was traced again.
    assert not [line for line in said if "uncompiled" in line or "traced again" in line]
    assert all(part.whole and not part.unknown for part in parts.values())
    assert counters["aot_autograd"]["autograd_cache_miss"] == 0

"""What was compiled is written once, follows the model's weights, and is taken over by its owner
alone where everything that it was compiled for is the same.
"""

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from miniature import NARROW, SMALL_BODY, call
from torch._inductor.runtime.autotune_cache import AutotuneCache

from codmoe import create_model
from codmoe.compiled import artefact as artefacts
from codmoe.compiled import kept_parts
from codmoe.compiled.artefact import circumstances, fingerprint, take_over
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.prepared import CompiledMoE, attach_prepared
from codmoe.inference.export.exporting import export
from codmoe.models.moe import ModelLevelMoE

BACKBONE = dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY)
AGAIN = "make it again with codmoe export --format compiled; compiling meanwhile"


def build(**changes):
    torch.manual_seed(0)
    settings = dict(experts=NARROW, router=dict(type="EvidenceRouter", width=16), top_k=1)
    model = ModelLevelMoE(BACKBONE, **(settings | changes)).eval()
    torch.nn.init.normal_(model.router.fuse[-1].weight)
    return model


class Part:
    """A part that was compiled whole, as far as those who call it know."""

    def __init__(self, method):
        self.method = method

    def misfit(self, args, kwargs):
        return ""

    def __call__(self, *args):
        return self.method(*args)


made = []
"""Files of the parts that were compiled."""


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Compiles nothing: what is kept of a part is a file that says so."""

    def make(method, path, inputs, mode=None):
        path.write_text("compiled")
        made.append(path.name)
        return Part(method)

    def load(method, path, inputs=None):
        assert path.read_text() == "compiled"
        return Part(method)

    def compile_nothing(function, **_):
        if isinstance(function, torch.nn.Module):
            function._is_torch_compile = True  # as torch's does
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_parts, "make_whole", make)
        patch.setattr(kept_parts, "load_whole", load)
        patch.setattr(torch, "compile", compile_nothing)
        yield


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    """torch's cache of a machine that has compiled nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    made.clear()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return build()


@pytest.fixture(scope="module")
def written(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("export") / "pieces"
    settings = dict(size=64, batches=(1, 2), device="cpu")
    assert export(build(), folder, format="compiled", **settings)["probability"] < 1e-4
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "pieces"))


def agree(prepared, images, names=None):
    """Whether it gives what the model's copies give, uncompiled."""
    plain = CompiledMoE(prepared.model, backend="eager")(images, names=names)
    got = prepared(images, names=names)
    return (got.sigmoid() - plain.sigmoid()).abs().max() < 1e-4


def test_pieces_of_an_artefact_give_what_the_model_gives_and_follow_its_weights(
    folder, model, images
):
    prepared = CompiledMoE(model, artefact=folder)
    assert prepared.batches == [1, 2] and prepared.groups == [1]
    for names in (None, ["pranet"], ["sinet"]):
        assert agree(prepared, images, names) and agree(prepared, images[:1], names)
    assert not made and not prepared.reason
    other, before = build(), prepared(images)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.load_state_dict(other.state_dict())
    assert agree(prepared, images) and not torch.allclose(prepared(images), before)


def test_the_command_writes_it_and_the_others_take_it(tmp_path, folder, monkeypatch, capsys):
    """By the options of the command line, as --compile has them."""
    out = tmp_path / "out"
    options = ["--format", "compiled", "--size", 56, "--batches", 1, "--dtype", "fp32"]
    options += ["--device", "cpu", "--no-check", "--out", out]
    assert call(monkeypatch, "export", "small", *options) is None
    assert "1: backbone, 1 × 3 × 56 × 56" in capsys.readouterr().out
    made.clear()
    small = create_model("small", pretrained=True)
    prepared = attach_prepared(small, dict(artefact=str(out)), batch_size=8)
    assert prepared.batches == [1], "those of the artefact, not of the loader"
    prepared(torch.zeros(1, 3, 56, 56))
    assert not made


def changed(folder, **given):
    """The manifest as if it had been written elsewhere, by this user."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["format"], content["files"]
    artefacts.write_manifest(folder, **content | dict(made=content["made"] | given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(torch="2.1.0"), f"is for torch 2.1.0, not {torch.__version__}; {AGAIN}"),
        (dict(device="NVIDIA T4, sm_75, CUDA 12.1"), "is for device NVIDIA T4, sm_75, CUDA 12.1"),
        (dict(threads=0), f"is for threads 0, not {torch.get_num_threads()}; {AGAIN}"),
        (dict(model="0"), f"is for model another; {AGAIN}"),
    ],
)
def test_what_was_made_elsewhere_is_refused_in_a_sentence_and_compiled_here(
    folder, model, images, given, words, capsys
):
    changed(folder, **given)
    prepared = CompiledMoE(model, artefact=folder)
    assert words in prepared.reason and words in prepared.report
    assert words in capsys.readouterr().err
    assert agree(prepared, images)
    assert made


def test_another_precision_or_model_is_refused(folder, model):
    prepared = CompiledMoE(model, artefact=folder, dtype="bf16")
    assert "is for precision fp32, not bf16" in prepared.reason
    prepared = CompiledMoE(model, artefact=folder, memory_format="contiguous")
    assert "is for layout channels_last, not contiguous" in prepared.reason
    wider = dict(NARROW, sinet=dict(type="SINetExpert", channels=16))
    assert "is for model another" in CompiledMoE(build(experts=wider), artefact=folder).reason


def test_a_size_that_is_not_in_it_is_compiled_and_said(folder, model, images, capsys):
    prepared = CompiledMoE(model, artefact=folder)
    prepared(images)
    assert "is not in artefact" not in capsys.readouterr().err
    assert agree(prepared, torch.randn(1, 3, 96, 96))
    assert made and not prepared.reason
    told = f"backbone for 1 × 3 × 96 × 96 is not in artefact {folder}: it is compiled now"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["of another user", "another manifest", "another file"])
def test_what_this_user_did_not_write_is_not_taken(folder, model, images, kind, monkeypatch):
    if kind == "of another user":
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "another's"))
    elif kind == "another manifest":
        path = folder / "manifest.json"
        path.write_text(path.read_text() + " ")
    else:
        for path in folder.rglob("*.whole"):
            path.write_text("evil")
    prepared = CompiledMoE(model, artefact=folder)
    assert agree(prepared, images)
    assert made
    if kind == "another file":
        assert ".whole is not the file that was written; make it again" in prepared.reason
    else:
        assert "was not written by this user as it is" in prepared.reason


def test_files_that_are_there_stay(folder, model, tmp_path):
    """An artefact adds to what was compiled before."""
    name = next((folder / "cache").rglob("*.whole")).relative_to(folder / "cache")
    there = tmp_path / "inductor" / name
    there.parent.mkdir(parents=True, mode=0o700)
    there.write_text("own")
    assert take_over(folder, PartCopies(model, "fp32", "channels_last")) == ""
    assert there.read_text() == "own" and len(list(there.parent.iterdir())) > 1


def test_kernels_of_triton_are_found_where_they_are_taken_over(tmp_path, model, monkeypatch):
    """It names the files of a kernel by whole paths, and compiles those anew that are not there."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    copies = CompiledMoE(model, backend="eager").copies
    folder = tmp_path / "pieces"
    folder.mkdir()
    with artefacts.recorded(folder):
        kernel = Path(os.environ["TRITON_CACHE_DIR"]) / "K7"
        kernel.mkdir(parents=True)
        (kernel / "add.cubin").write_bytes(b"native")
        children = {"add.cubin": str(kernel / "add.cubin")}
        (kernel / "__grp__add.json").write_text(json.dumps(dict(child_paths=children)))
    numbers = dict(batches=[1], groups=[1], size=64)
    artefacts.write_manifest(folder, made=circumstances(copies), **numbers)
    assert not kernel.exists() and take_over(folder, copies) == ""
    place = tmp_path / "inductor" / "triton" / "0" / "K7"
    (child,) = json.loads((place / "__grp__add.json").read_text())["child_paths"].values()
    assert child == str(place / "add.cubin") and Path(child).read_bytes() == b"native"


def test_what_was_tuned_is_found_where_it_is_taken_over(tmp_path, model):
    """Kernels name their source by a whole path, beside which torch keeps the fastest variant."""
    copies = CompiledMoE(model, backend="eager").copies
    folder, fastest = tmp_path / "pieces", SimpleNamespace(kwargs=dict(XBLOCK=64))
    fastest.num_warps, fastest.num_stages = 4, 2
    folder.mkdir()
    meta = dict(autotune_local_cache=True, autotune_remote_cache=False)
    with artefacts.recorded(folder):
        source = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "ab" / "cab.py"
        source.parent.mkdir()
        source.write_text("kernel")
        AutotuneCache.create(meta, str(source), "h").save(fastest, 10**6)
    numbers = dict(batches=[1], groups=[1], size=64)
    artefacts.write_manifest(folder, made=circumstances(copies), **numbers)
    assert not source.exists() and take_over(folder, copies) == ""
    found = AutotuneCache.create(meta, str(source), "h")._read()
    assert (found["XBLOCK"], found["num_warps"], found["num_stages"]) == (64, 4, 2)
    # Of a kernel that was compiled here nothing else is read.
    own = tmp_path / "own" / "ab" / "cab.py"
    own.parent.mkdir(parents=True)
    own.write_text("kernel")
    assert AutotuneCache.create(meta, str(own), "h")._read() is None


def test_what_is_no_artefact_is_an_error(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; make one with codmoe"):
        CompiledMoE(model, artefact=tmp_path)
    whole = dict(format="compiled", batches=[1], groups=[1], files={})
    whole["made"] = dict(precision="fp32", layout="contiguous")
    wrong = [dict(format="onnx"), dict(files=["a"]), dict(files={"a": 1}), dict(made={})]
    for text in ("{", "[]", *(json.dumps(whole | fault) for fault in wrong)):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="not that of compiled pieces"):
            CompiledMoE(model, artefact=tmp_path)


def test_an_artefact_and_another_backend_exclude_each_other(folder, model):
    with pytest.raises(ValueError, match="backend='cudagraph' reads no artefact"):
        CompiledMoE(model, artefact=folder, backend="cudagraph")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(format="safetensors", batches=(1,)), "batches is of format='compiled' alone"),
        (dict(format="compiled", batches=(0,)), r"batches=\[0\]: give numbers of images"),
        (dict(format="compiled", device="xpu"), "device 'xpu' is not to be had here"),
    ],
)
def test_wrong_options_of_the_export_are_told(tmp_path, model, options, words):
    with pytest.raises(ValueError, match=words):
        export(model, tmp_path / "out", size=64, **options)
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_tells_code_and_shapes_and_not_weights(model):
    copies = PartCopies(model, "fp32", "contiguous")
    other = build()
    torch.nn.init.normal_(other.router.fuse[-1].weight)
    assert fingerprint(copies) == fingerprint(PartCopies(other, "fp32", "contiguous"))
    changed = deepcopy(model)
    changed.experts["sinet"].head_factor = 0.5
    assert fingerprint(copies) != fingerprint(PartCopies(changed, "fp32", "contiguous"))
    assert circumstances(copies)["device"].startswith("cpu, ")


REAL = """
import sys
from pathlib import Path
import torch
from test_artefact import build
from codmoe.compiled import kept_parts
from codmoe.compiled.artefact import circumstances, recorded, take_over, write_manifest
from codmoe.compiled.copies import PartCopies

folder, copies = Path(sys.argv[1]), PartCopies(build(), "fp32", "contiguous")
torch.manual_seed(0)
part, x = torch.nn.Conv2d(3, 4, 3).eval().requires_grad_(False), torch.randn(1, 3, 8, 8)

def find():
    with torch.inference_mode():
        return kept_parts.KeptParts(copies).find("part", part, (x,))(x)

if sys.argv[2] == "write":
    with recorded(folder):
        found = find()
    write_manifest(folder, made=circumstances(copies), batches=[1], groups=[1])
else:
    kept_parts.make_whole = None
    assert take_over(folder, copies) == ""
    found = find()
torch.testing.assert_close(found, part(x))
"""


def test_what_was_compiled_in_one_place_is_loaded_in_another(tmp_path):
    """By torch itself, of one layer: nothing is compiled where it is taken over."""
    if shutil.which("g++") is None:
        pytest.skip("torch compiles for a CPU with g++")
    folder = tmp_path / "pieces"
    folder.mkdir()
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    for does in ("write", "load"):
        env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / does)
        command = [sys.executable, "-c", REAL, str(folder), does]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "compiled a" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "manifest.json"]
    assert not list((tmp_path / "write").rglob("*.*")), "all lies in the artefact"

"""Compiled pieces are written once, follow the model's weights, and are loaded by their owner alone
where everything that they were compiled for is the same.
"""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from miniature import NARROW, SMALL_BODY, call

from codmoe import create_model
from codmoe.compiled import artefact as artefacts
from codmoe.compiled.artefact import (
    Artefact,
    Recorder,
    circumstances,
    fingerprint,
    write_piece,
)
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.prepared import CompiledMoE, attach_prepared
from codmoe.inference.export import exporting
from codmoe.inference.export.exporting import export
from codmoe.models.moe import ModelLevelMoE

BACKBONE = dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY)
REAL = vars(torch._inductor).copy()
AGAIN = "make it again with codmoe export --format compiled; compiling meanwhile"


def build(**changes):
    torch.manual_seed(0)
    settings = dict(experts=NARROW, router=dict(type="EvidenceRouter", width=16), top_k=1)
    model = ModelLevelMoE(BACKBONE, **(settings | changes)).eval()
    torch.nn.init.normal_(model.router.fuse[-1].weight)
    return model


class Program:
    """What AOTInductor's packages do, by the exported program itself."""

    made: dict = {}

    def __init__(self, content):
        self.module, self.values = self.made[content].module(), {}

    def get_constant_fqns(self):
        return [name for name, _ in self.module.named_parameters()] + [
            name for name, _ in self.module.named_buffers()
        ]

    def load_constants(self, values, check_full_update, user_managed):
        assert check_full_update and user_managed
        self.values = values

    def __call__(self, *tensors):
        return torch.func.functional_call(self.module, self.values, tensors)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Compiles nothing: packages are programs in memory, and torch.compile gives what it got."""

    def write(program, package_path, inductor_configs):
        content = f"{package_path} {len(Program.made)}".encode()
        Program.made[content] = program
        Path(package_path).write_bytes(content)

    def compile_nothing(function, **_):
        if isinstance(function, torch.nn.Module):
            function._is_torch_compile = True  # as torch's does
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "aoti_compile_and_package", write)
        patch.setattr(
            torch._inductor, "aoti_load_package", lambda path, **_: Program(Path(path).read_bytes())
        )
        patch.setattr(torch, "compile", compile_nothing)
        for module in (artefacts, exporting):  # on any machine: programs in memory end no process
            patch.setattr(module, "built_for_cuda", lambda: False)
        yield patch


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


def hows(prepared):
    return {piece.how for piece in prepared.pieces}


def test_pieces_of_an_artefact_give_what_the_model_gives_and_follow_its_weights(
    folder, model, images, monkeypatch
):
    prepared = CompiledMoE(model, artefact=folder)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", None)
    assert prepared.batches == [1, 2] and prepared.groups == [1]
    for names in (None, ["pranet"], ["sinet"]):
        assert agree(prepared, images, names) and agree(prepared, images[:1], names)
    assert hows(prepared) == {"artefact"} and not prepared.reason
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
    assert "1 of 9: backbone, 1 × 3 × 56 × 56" in capsys.readouterr().out
    small = create_model("small", pretrained=True)
    prepared = attach_prepared(small, dict(artefact=str(out)), batch_size=8)
    assert prepared.batches == [1], "those of the artefact, not of the loader"
    prepared(torch.zeros(1, 3, 56, 56))
    assert hows(prepared) == {"artefact"}


def changed(folder, **made):
    """The manifest as if it had been written elsewhere, by this user."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["made"] |= made
    path.write_text(json.dumps(content))
    artefacts.note_own(folder)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (dict(torch="2.1.0"), f"is for torch 2.1.0, not {torch.__version__}; {AGAIN}"),
        (dict(device="NVIDIA T4, sm_75, CUDA 12.1"), "is for device NVIDIA T4, sm_75, CUDA 12.1"),
        (dict(model="0"), f"is for model another; {AGAIN}"),
    ],
)
def test_what_was_made_elsewhere_is_refused_in_a_sentence_and_compiled_here(
    folder, model, images, made, words, capsys
):
    changed(folder, **made)
    prepared = CompiledMoE(model, artefact=folder)
    assert words in prepared.reason and words in prepared.report
    assert words in capsys.readouterr().err
    assert agree(prepared, images)
    assert hows(prepared) == {"inductor"}


def test_another_precision_or_model_is_refused(folder, model):
    prepared = CompiledMoE(model, artefact=folder, dtype="bf16")
    assert "is for precision fp32, not bf16" in prepared.reason
    prepared = CompiledMoE(model, artefact=folder, memory_format="contiguous")
    assert "is for layout channels_last, not contiguous" in prepared.reason
    wider = dict(NARROW, sinet=dict(type="SINetExpert", channels=16))
    assert "is for model another" in CompiledMoE(build(experts=wider), artefact=folder).reason


def test_none_is_loaded_where_torch_is_built_for_cuda(folder, model, monkeypatch):
    monkeypatch.setattr(artefacts, "built_for_cuda", lambda: True)
    copies = PartCopies(model, "fp32", "channels_last")
    assert "is not loaded: torch 2.11's loader" in Artefact(folder, copies).refused


def test_a_size_that_is_not_in_it_is_compiled_and_the_piece_says_so(folder, model):
    prepared = CompiledMoE(model, artefact=folder)
    large = torch.randn(1, 3, 96, 96)
    assert agree(prepared, large)
    assert hows(prepared) == {"inductor"}
    assert "not in the artefact: backbone" in prepared.report


@pytest.mark.parametrize("kind", ["of another user", "another manifest", "another package"])
def test_what_this_user_did_not_write_is_not_loaded(folder, model, images, kind, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *a, **_: loaded.append(a))
    if kind == "of another user":
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "another's"))
    elif kind == "another manifest":
        path = folder / "manifest.json"
        path.write_text(path.read_text() + " ")
    else:
        for path in folder.glob("*.pt2"):
            path.write_bytes(b"evil")
    prepared = CompiledMoE(model, artefact=folder)
    assert agree(prepared, images)
    assert not loaded and hows(prepared) == {"inductor"}
    if kind == "another package":
        assert ".pt2 is not the file that was written" in prepared.report
    else:
        assert "was not written by this user as it is" in prepared.reason


def test_a_package_that_torch_cannot_load_is_compiled_here(folder, model, images, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no such symbol\nat 0")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", broken)
    prepared = CompiledMoE(model, artefact=folder)
    assert agree(prepared, images)
    assert "artefact: backbone cannot be loaded: RuntimeError: no such symbol" in prepared.report


def test_what_is_no_artefact_is_an_error(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; make one with codmoe"):
        CompiledMoE(model, artefact=tmp_path)
    for text in ("{", "[]", '{"format": "onnx", "batches": [1], "groups": [1]}', '{"batches": 1}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="not that of compiled pieces"):
            CompiledMoE(model, artefact=tmp_path)


def test_an_artefact_and_another_backend_exclude_each_other(folder, model):
    with pytest.raises(ValueError, match="backend='cudagraph' runs no artefact"):
        CompiledMoE(model, artefact=folder, backend="cudagraph")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(format="safetensors", batches=(1,)), "batches is of format='compiled' alone"),
        (dict(format="compiled", batches=(0,)), r"batches=\[0\]: give numbers of images"),
        (dict(format="compiled", device="xpu"), "device 'xpu' is not to be had here"),
        (dict(format="compiled", device="cuda:0"), "a torch without CUDA: torch 2.11's loader"),
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


@pytest.mark.skipif(artefacts.built_for_cuda(), reason="torch 2.11's loader ends the process")
def test_a_piece_is_native_code_that_reads_the_models_own_tensors(tmp_path, monkeypatch, model):
    """By AOTInductor itself, of the smallest part."""
    for name in ("aoti_compile_and_package", "aoti_load_package"):
        monkeypatch.setattr(torch._inductor, name, REAL[name])
    copies = PartCopies(model, "fp32", "contiguous")
    recorder = Recorder(copies.device)
    # Headers that are compiled beforehand pay from the second piece on.
    monkeypatch.setitem(artefacts.CONFIG, "aot_inductor.precompile_headers", False)
    layer = torch.nn.Conv2d(3, 4, 1)
    copies.modules = dict(combiner=layer)
    images = torch.randn(2, 3, 8, 8)
    expected = recorder.compiled("combiner", layer)(images)
    ((key, (_, function, arguments)),) = recorder.calls.items()
    entry = write_piece(key, function, arguments, tmp_path / "piece.pt2")
    content = dict(format="compiled", batches=[1], groups=[1], pieces=[entry])
    content["made"] = circumstances(copies)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    artefacts.note_own(tmp_path)
    artefact = Artefact(tmp_path, copies)
    assert not artefact.refused
    found = artefact.find("combiner", (images,))
    assert artefact.failures == {}
    torch.testing.assert_close(found(images), expected)
    with torch.no_grad():
        layer.bias.add_(1)
    torch.testing.assert_close(found(images), expected + 1)
    assert artefact.find("combiner", (images[:1],)) is None, "of another shape"
    assert artefact.find("combiner", (images.permute(0, 1, 3, 2),)) is None, "of other strides"

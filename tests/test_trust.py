"""Received files run no code: config texts, stored configs, hub folders and pickles."""

from __future__ import annotations

import json
import os
import pickle
import random
import string
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from safetensors.torch import load_file, save_file

from codmoe import ModelLevelMoE, create_model
from codmoe.engine.checkpoints import meta_of, read_meta, read_weights, stored_config
from codmoe.inference.inferencer import Inferencer
from codmoe.registry import MODELS
from codmoe.shipped import shipped_weights
from codmoe.trust import check_received, import_custom, read_literals, read_pickle
from codmoe.visualization.report.data import read_training


@pytest.fixture
def sentinel(tmp_path, monkeypatch) -> Path:
    """A file that every attack of this module would make."""
    path = tmp_path / "ran"
    monkeypatch.setenv("CODMOE_SENTINEL", str(path))
    return path


class Attack:
    """Makes the sentinel when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def shipped(tmp_path: Path, change) -> Path:
    """The shipped ensemble, its stored config changed by ``change(text) -> text``."""
    source = shipped_weights("small")
    meta = dict(read_meta(source))
    meta["config"] = change(meta["config"])
    path = tmp_path / "received.safetensors"
    save_file(load_file(source), path, metadata=dict(format="pt", meta=json.dumps(meta)))
    return path


# ---------------------------------------------------------------------------- config texts


def test_literals_are_read_as_mmengine_reads_them():
    text = Config(
        dict(
            a=1,
            b=-2.5,
            c=("x", None, True),
            d=dict(type="T", keys={"a.b": dict(lr_mult=0.1)}),
            e=[dict(x={1, 2})],
            f='it\'s "quoted" {{$HOME:x}}',
        )
    ).pretty_text
    assert read_literals(text, "here")["d"] == dict(type="T", keys={"a.b": dict(lr_mult=0.1)})
    assert read_literals(text, "here")["f"] == 'it\'s "quoted" {{$HOME:x}}'


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "a = __import__('os').system('touch x')",
        "a = f'{1}'",
        "a = [1] * 3",
        "a = (lambda: 1)()",
        "a = [x for x in (1,)]",
        "a = dict(**{'b': 1})",
        "a = {**{}}",
        "a = dict([('b', 1)])",
        "a = print",
        "a.b = 1",
        "a = b = 1",
        "_base_ = 'other.py'",
        "if True:\n    a = 1",
        "a: int = 1",
        "a = (b := 1)",
        "a = 1 if 2 else 3",
        "a = [",
        "a = " + "[" * 3000 + "]" * 3000,
        "a = '" + "x" * 2_000_001 + "'",
        "a = {[]: 1}",
        "a = '\0'",
    ],
)
def test_what_is_no_literal_is_refused_with_its_source(text):
    with pytest.raises(ValueError, match=r"^config of somebody"):
        read_literals(text, "config of somebody")


def test_mutated_configs_do_nothing(sentinel, tmp_path):
    """600 texts, made by cutting, doubling and inserting attacks into a real one."""
    base = read_meta(shipped_weights("small"))["config"]
    command = "touch $CODMOE_SENTINEL"
    payloads = [
        f"__import__('os').system('{command}')",
        f"dict(type='subprocess.getoutput', cmd='{command}')",
        "custom_imports = dict(imports=['antigravity'])\n",
        '\'{{$HOME:\\047+str(__import__("os").system("' + command + "\"))+\\047}}'",
        "_base_ = ['/etc/passwd']\n",
        "(lambda: 0)()",
        "`id`",
        "exec('1')",
    ]
    draw = random.Random(0)
    read = 0
    for _ in range(600):
        text = base
        for _ in range(draw.randint(1, 3)):
            i, j = sorted(draw.sample(range(len(text)), 2))
            kind = draw.randrange(4)
            if kind == 0:
                text = text[:i] + draw.choice(payloads) + text[i:]
            elif kind == 1:
                text = text[:i] + text[min(j, i + 40) :]
            elif kind == 2:
                text = text[:i] + "".join(draw.choices(string.printable, k=8)) + text[i:]
            else:
                lines = text.splitlines(keepends=True)
                lines.insert(draw.randrange(len(lines)), f"x = {draw.choice(payloads)}\n")
                text = "".join(lines)
        try:
            values = read_literals(text, "mutated")
            read += 1
            check_received(values.get("model"), MODELS.module_dict, "mutated")
            import_custom(values, "mutated")
        except ValueError:
            pass
    assert read > 10, "mutations that leave a text whole are part of the test"
    assert not sentinel.exists()


def test_mutated_pickles_do_nothing(sentinel, tmp_path):
    """Attacks alone and beside weights, and 500 files with bytes changed."""
    command = "touch $CODMOE_SENTINEL"
    path = tmp_path / "x.pth"
    weights = dict(state_dict=dict(w=torch.ones(2)), meta=dict(a=1))
    for content in (Attack(command), dict(weights, meta=Attack(command)), [Attack(command)]):
        torch.save(content, path)
        for loader in (read_pickle, read_weights, meta_of, stored_config):
            with pytest.raises(ValueError, match=r"x\.pth"):
                loader(path)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"x\.pth"):
            read_weights(path)
    torch.save(dict(weights, extra=Attack(command)), path)
    data, draw = path.read_bytes(), random.Random(0)
    for _ in range(500):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
        for loader in (read_weights, meta_of):
            try:
                loader(path)
            except ValueError:
                continue
    assert not sentinel.exists()


# ---------------------------------------------------------------------------- every way in

SUBSTITUTION = (
    '\nnote = \'{{$NOT_SET:\\047+str(__import__("os").system("touch $CODMOE_SENTINEL"))+\\047}}\'\n'
)
ATTACKS = dict(
    dotted_type=lambda text: text.replace("'ViTPyramid'", "'subprocess.getoutput'"),
    dotted_part=lambda text: text.replace("type='SINetExpert'", "type='os.system'"),
    other_scope=lambda text: text.replace("type='SINetExpert'", "type='X', _scope_='mmengine'"),
    custom_imports=lambda text: text + "\ncustom_imports = dict(imports=['received_module'])\n",
    substitution=lambda text: text + SUBSTITUTION,
    call=lambda text: text + "\nx = __import__('os').system('touch $CODMOE_SENTINEL')\n",
    base=lambda text: text + "\n_base_ = ['received_module.py']\n",
    timm=lambda text: text.replace(
        "type='ViTPyramid'", "type='ViTPyramid', timm_args=dict(checkpoint_path='x.pth')"
    ),
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_stored_config_runs_code(attack, tmp_path, sentinel, monkeypatch):
    (tmp_path / "received_module.py").write_text(
        "import os, pathlib\npathlib.Path(os.environ['CODMOE_SENTINEL']).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = shipped(tmp_path, ATTACKS[attack])
    ways = [lambda: create_model(checkpoint=path), lambda: Inferencer(checkpoint=path)]
    for way in ways:
        if attack == "substitution":  # the string stays a string
            assert isinstance(way(), (ModelLevelMoE, Inferencer))
            assert "{{$NOT_SET" in stored_config(path).note
        else:
            with pytest.raises(ValueError, match=r"received\.safetensors"):
                way()
    assert not sentinel.exists()


def test_trusted_code_is_imported_when_the_caller_says_so(tmp_path, sentinel, monkeypatch):
    (tmp_path / "received_trusted.py").write_text(
        "import os, pathlib\npathlib.Path(os.environ['CODMOE_SENTINEL']).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = shipped(tmp_path, lambda t: t + "\ncustom_imports = dict(imports='received_trusted')\n")
    with pytest.raises(ValueError, match=r"trust_code=True \(--trust-code\)"):
        create_model(checkpoint=path)
    assert not sentinel.exists()
    assert create_model(checkpoint=path, trust_code=True).expert_names
    assert sentinel.exists()
    # What is imported already runs no code.
    assert create_model(checkpoint=path).expert_names


def test_hub_folders_build_own_parts_alone(tmp_path, sentinel):
    model = create_model("small", pretrained=True)
    model.save_pretrained(tmp_path / "hub")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert ModelLevelMoE.from_pretrained(tmp_path / "hub").expert_names == model.expert_names
    for change in (
        dict(backbone=dict(type="subprocess.getoutput", cmd="touch $CODMOE_SENTINEL")),
        dict(router=dict(type="os.system", command="touch $CODMOE_SENTINEL")),
        dict(combiner=dict(type="ProbabilityCombiner", _scope_="mmengine")),
    ):
        (tmp_path / "hub/config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=r"config\.json"):
            ModelLevelMoE.from_pretrained(tmp_path / "hub")
    assert not sentinel.exists()
    # The weights come with the folder: neither another file nor the network is read.
    backbone = dict(config["backbone"], checkpoint=str(tmp_path / "absent.pth"), pretrained=True)
    (tmp_path / "hub/config.json").write_text(json.dumps(dict(config, backbone=backbone)))
    assert ModelLevelMoE.from_pretrained(tmp_path / "hub").expert_names == model.expert_names


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("custom_imports = 5", "no list of module names"),
        ("custom_imports = dict(imports=5)", "no list of module names"),
        ("model = 'x'", "model='x' of its config is no dict"),
        ("data_preprocessor = [1]", "is no dict"),
        ("filename = 'x'", "cannot be read"),
    ],
)
def test_stored_configs_of_the_wrong_form_are_refused_in_a_sentence(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        create_model(checkpoint=shipped(tmp_path, lambda text: f"{text}\n{line}\n"))


def test_reports_do_not_run_the_configs_of_a_folder(tmp_path, sentinel):
    folder = tmp_path / "20260101_000000" / "vis_data"
    folder.mkdir(parents=True)
    row = dict(lr=0.1, loss=1.0, epoch=1, iter=1, step=1, time=0.1, data_time=0.0)
    (folder / "scalars.json").write_text(json.dumps(row) + "\n")
    (folder / "config.py").write_text("import os\nos.system('touch $CODMOE_SENTINEL')\n")
    assert read_training(tmp_path).config is None
    (folder / "config.py").write_text("a = dict(b=1)\n")
    assert read_training(tmp_path).config.a.b == 1
    assert not sentinel.exists()


class Flags:
    """A number whose type has flags of its own: numpy would take its bytes for a pointer."""

    def __reduce__(self):
        return multiarray.scalar, (Reduced(np.dtype, ("f8", False, True), FLAGGED), b"\1" * 8)


class Reduced:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
FLAGGED = (3, "<", None, None, None, -1, -1, 0x3F)


def test_no_pickle_sets_the_flags_of_a_numpy_type(tmp_path):
    torch.save(dict(x=Flags()), tmp_path / "a.pth")
    value = read_pickle(tmp_path / "a.pth")["x"]
    assert value.dtype is np.dtype("f8") and not value.dtype.hasobject
    torch.save(dict(x=Reduced(np.dtype, ("O", False, True))), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b\.pth"):
        read_pickle(tmp_path / "b.pth")


def test_timm_is_given_tensors_and_no_file(tmp_path, monkeypatch):
    model = timm.create_model("pvt_v2_b0", features_only=True)
    plain = dict(timm.create_model("pvt_v2_b0").state_dict())
    torch.save(dict(state_dict=plain), tmp_path / "body.pth")
    save_file(plain, tmp_path / "body.safetensors")
    monkeypatch.setattr("timm.models._helpers.load_state_dict", lambda *a, **k: 1 / 0)
    for name in ("body.pth", "body.safetensors"):
        backbone = dict(type="TimmPyramid", name="pvt_v2_b0", checkpoint=str(tmp_path / name))
        loaded = MODELS.build(backbone).body.state_dict()
        assert loaded.keys() == model.state_dict().keys()
        key = next(k for k in plain if k.startswith("patch_embed") and k.endswith("weight"))
        assert torch.equal(loaded[key], plain[key])
    torch.save(dict(state_dict=dict(a=1)), tmp_path / "bad.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 20)
    for name in ("bad.pth", "bad.safetensors"):
        with pytest.raises(ValueError, match=rf"{name}' (holds|cannot be read)"):
            MODELS.build(dict(backbone, checkpoint=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"[1]", r"config\.json holds a list"),
        ("config.json", b"{", r"config\.json is no JSON file"),
        ("config.json", b"[" * 5000, r"config\.json is no JSON file"),
        ("config.json", b"{}", "cannot be built|does not fit"),
        ("model.safetensors", b"x" * 20, r"model\.safetensors cannot be read"),
    ],
)
def test_damaged_folders_are_one_sentence(tmp_path, name, content, words):
    create_model("small", pretrained=True).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ModelLevelMoE.from_pretrained(tmp_path)


def test_backbone_weights_are_no_pickles_with_code(tmp_path, sentinel):
    path = tmp_path / "body.pth"
    torch.save(Attack("touch $CODMOE_SENTINEL"), path)
    with pytest.raises(ValueError, match="refused"):
        create_model(
            "small",
            backbone=dict(name="pvt_v2_b0", checkpoint=str(path)),
            experts=dict(zoomnet=None),
        )
    assert not sentinel.exists()


# ---------------------------------------------------------------------------- what stays readable


def test_training_histories_are_read_whole(tmp_path):
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 2])
    torch.save(
        dict(
            state_dict=dict(w=torch.ones(2)),
            message_hub=dict(log_scalars=dict(loss=history), best=np.float64(0.5)),
        ),
        tmp_path / "epoch_1.pth",
    )
    hub = read_pickle(tmp_path / "epoch_1.pth")["message_hub"]
    assert hub["best"] == 0.5
    assert hub["log_scalars"]["loss"].mean() == history.mean()
    assert hub["log_scalars"]["loss"].statistics("max") == 3.0


def test_a_refused_pickle_names_the_file_and_the_way_to_convert_it(tmp_path):
    torch.save(Attack("true"), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds more than weights .*torch\.save"):
        read_pickle(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match=r"b\.pth does not exist"):
        read_pickle(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["eval", "__class__", "register_statistics"])
def test_getattr_reaches_the_statistics_of_histories_alone(tmp_path, name):
    from mmengine.logging import HistoryBuffer

    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, name)

    torch.save(dict(state_dict=dict(w=torch.ones(1)), x=Reach()), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth"):
        read_pickle(tmp_path / "a.pth")

"""Trained weights that ship: packed, found by name, used when nothing else is given."""

import json
import socket

import cv2
import numpy as np
import pytest
import torch
from miniature import ROOT, call
from mmengine.config import Config
from safetensors.torch import save_file

from codmoe import Inferencer, create_model, list_models
from codmoe.datasets.synthetic import generate
from codmoe.engine.checkpoints import packed, read_meta, read_weights, save_weights
from codmoe.inference.export.pack import LIMIT, pack
from codmoe.shipped import shipped_weights

SMALL = ROOT / "codmoe/weights/small_ensemble.safetensors"
shipped = pytest.mark.skipif(not SMALL.is_file(), reason="this checkout holds no trained weights")
CONFIG = dict(
    work_dir="/home/somebody/run",
    model=dict(
        type="ModelLevelMoE",
        backbone=dict(
            type="TimmPyramid",
            name="tf_efficientnet_lite0",
            pretrained=True,
            checkpoint="data/weights/absent.safetensors",
        ),
        experts=dict(
            sinet=dict(type="SINetExpert", channels=8),
            pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
        ),
        router=dict(type="EvidenceRouter", width=16),
        # Both: of two equally good experts rounding might choose the other.
        top_k=2,
        evaluate_all_experts=True,
    ),
    test_dataloader=dict(dataset=dict(type="SyntheticCamouflage", image_size=64)),
)


@pytest.fixture
def trained(tmp_path):
    """A stage's weights file, as the best-weights hook leaves it."""
    torch.manual_seed(0)
    config = tmp_path / "miniature.py"
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in CONFIG.items()))
    model = create_model(config)
    names = list(model.expert_names)
    meta = dict(config=Config(CONFIG).pretty_text, expert_names=names, stage="x", score=0.5)
    path = tmp_path / "ensemble_best.pth"
    save_weights(path, model, dict(meta, config_file="/home/somebody/x.py"), "run")
    return path


@pytest.fixture
def installed(trained, tmp_path, monkeypatch):
    """As if the package held those weights."""
    monkeypatch.setattr("codmoe.shipped.FOLDER", tmp_path / "weights")
    path = tmp_path / "weights/small_ensemble.safetensors"
    pack(trained, path)
    return path


def test_packing_halves_and_says_what_it_changed(trained, tmp_path):
    out = tmp_path / "packed.safetensors"
    found = pack(trained, out)
    assert found["bytes"] == out.stat().st_size < 0.6 * trained.stat().st_size
    assert 0 < found["change"] < 0.02
    state, before = read_weights(out), read_weights(trained)
    assert state.keys() == before.keys()
    assert {v.dtype for v in state.values()} == {torch.float16, torch.int64}
    meta = read_meta(out)
    assert meta["score"] == 0.5 and meta["expert_names"] == ["pranet", "sinet"]
    assert "somebody" not in json.dumps(meta)


def test_eight_bits_halve_it_again(trained, tmp_path, capsys, monkeypatch):
    half = pack(trained, tmp_path / "half.safetensors")
    cv2.imwrite(str(tmp_path / "photo.png"), generate(5, "figure", 64, 0.7)[0])
    out = tmp_path / "small.safetensors"
    options = ("--eight-bit", "--pictures", tmp_path / "photo.png")
    assert call(monkeypatch, "pack_weights", trained, out, *options) is None
    assert out.stat().st_size < 0.6 * half["bytes"] and "of a mask" in capsys.readouterr().out
    state, before = read_weights(out), read_weights(trained)
    assert state.keys() == before.keys()  # the scales are gone
    eighths = [key for key, value in state.items() if value.dtype == torch.float32]
    assert len(eighths) > 20
    for key in eighths:
        rows, error = before[key].flatten(1), (state[key] - before[key]).flatten(1).abs()
        # Half a step of the row's own scale, which is rounded to half precision.
        assert error.amax(1).le(rows.abs().amax(1) / 127 * 0.51 + 1e-7).all(), key
    picture = generate(6, "figure", 64, 0.7)[0]
    maps = [Inferencer(checkpoint=p, device="cpu")(picture)[0].probability for p in (trained, out)]
    assert 0 < np.abs(maps[0] - maps[1]).mean() < 0.05


@pytest.mark.parametrize("fault", ["no weights", "half", "rows"])
def test_scales_that_fit_nothing_are_refused(tmp_path, fault):
    tensors = {"a": torch.ones(4, 20, dtype=torch.int8), "a::scale": torch.ones(4).half()}
    if fault == "no weights":
        del tensors["a"]
    elif fault == "half":
        tensors["a"] = tensors["a"].half()
    else:
        tensors["a::scale"] = torch.ones(3).half()
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="a::scale belongs to no weights of 8 bits"):
        read_weights(tmp_path / "x.safetensors")


def test_a_packed_file_needs_nothing_else(trained, tmp_path, monkeypatch):
    out = tmp_path / "packed.safetensors"
    pack(trained, out)
    trained.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it wants the network"))
    model = create_model(checkpoint=out)
    assert model.cfg.model.backbone.checkpoint is None and not model.cfg.model.backbone.pretrained
    assert not model.cfg.model.evaluate_all_experts
    stored, loaded = read_weights(out), model.state_dict()
    assert all(
        torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in stored.items()
    )


def test_what_half_precision_cannot_hold_stays_float32(tmp_path):
    state = dict(variance=torch.tensor([1e6, 1.0]), weight=torch.tensor([0.1]))
    (tmp_path / "x.safetensors").write_bytes(packed(state, {}))
    again = read_weights(tmp_path / "x.safetensors")
    assert torch.equal(again["variance"], state["variance"])
    assert again["weight"].dtype == torch.float16
    other = tmp_path / "y.safetensors"
    other.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"y\.safetensors cannot be read"):
        read_weights(other)


def test_packing_refuses(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        pack(trained, tmp_path / "x.pth")
    out = tmp_path / "x.safetensors"
    code = call(monkeypatch, "pack_weights", trained, out, "--limit", 1000)
    assert code.startswith("error: ") and "more than 1,000" in code and not out.exists()
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist"):
        pack(tmp_path / "absent.pth", out)
    pack(trained, out)
    with pytest.raises(ValueError, match="is the checkpoint itself"):
        pack(out, tmp_path / "weights" / ".." / out.name)


def test_an_inferencer_without_arguments_uses_them(installed, capsys):
    picture = np.zeros((50, 40, 3), np.uint8)
    first = Inferencer(device="cpu")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'small'" in said and "MODEL_CARD.md" in said
    assert first.size == (64, 64)
    second, given = Inferencer("small", device="cpu"), Inferencer(checkpoint=installed)
    expected = given(picture)[0].probability
    assert expected.shape == (50, 40)
    for inferencer in (first, second):
        assert np.array_equal(inferencer(picture)[0].probability, expected)
    # Somebody's own weights go before those that ship.
    capsys.readouterr()
    Inferencer(checkpoint=installed)
    assert capsys.readouterr().err == ""


def test_the_command_line_needs_no_checkpoint(installed, tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((50, 40, 3), np.uint8))
    out = tmp_path / "maps"
    assert call(monkeypatch, "predict", tmp_path / "photo.jpg", "--out", out) is None
    assert (out / "photo.png").is_file() and "'small'" in capsys.readouterr().err


def test_by_name(installed):
    assert list_models(pretrained=True) == ["small"] and "small" in list_models("s*")
    assert list_models("ensemble/*", pretrained=True) == []
    model = create_model("small", pretrained=True, top_k=1)
    weights = read_weights(installed)
    key = "experts.sinet." + next(k for k, _ in model.experts["sinet"].named_parameters())
    assert torch.equal(model.state_dict()[key], weights[key].float())
    # Not asked for, not loaded: the architecture of the config that trains it.
    plain = create_model("small")
    assert plain.expert_names == ("pranet", "sinet", "ujsc", "zoomnet")


def test_without_the_file_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("codmoe.shipped.FOLDER", tmp_path)
    for ask in (Inferencer, lambda: create_model("small", pretrained=True)):
        with pytest.raises(FileNotFoundError, match="not in this installation") as error:
            ask()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="did you mean 'small'"):
        shipped_weights("smal")


def test_the_config_that_trains_it_fits_the_limit():
    content = packed(create_model("small").state_dict(), {}, eight_bit=True)
    assert 25_000_000 < len(content) + 20_000 <= LIMIT  # 20 kB: its config


@shipped
def test_the_shipped_file():
    assert SMALL.stat().st_size <= LIMIT
    inferencer = Inferencer(device="cpu")
    assert inferencer.size == (336, 336)
    assert inferencer.model.expert_names == ("pranet", "sinet", "ujsc", "zoomnet")
    image, mask = generate(5, "figure", 256, 0.7)
    prediction = inferencer(image)[0]
    assert prediction.probability.shape == mask.shape
    assert len(prediction.weights) == create_model("small").router.top_k
    # It finds an object that is merely a little lighter or darker than what surrounds it.
    both = (prediction.mask & mask).sum() / (prediction.mask | mask).sum()
    assert both > 0.5


@shipped
def test_its_card_holds_numbers():
    card = (SMALL.parent / "MODEL_CARD.md").read_text()
    assert "not measured yet" not in card and "| mixture |" in card

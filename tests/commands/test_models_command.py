"""``codmoe models`` lists what is trained and what is a recipe, apart."""

from miniature import run_command

from codmoe import list_models
from codmoe.engine.checkpoints import read_weights
from codmoe.engine.config import load_config
from codmoe.shipped import FOLDER

SHIPPED_FILE = FOLDER / "small_ensemble.safetensors"


def test_trained_models_and_recipes_are_told_apart(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, "models") is None
    out = capsys.readouterr().out
    trained, recipes = out.split("recipes, to be trained by codmoe train NAME:\n")
    names = [line.split()[0] for line in recipes.splitlines()[::2]]
    assert sorted(["small", *names]) == list_models() and "weights made here" not in recipes
    assert "  quickstart/stage3               vit_small_patch14_dinov2, 3 of 4 experts, " in recipes
    about = dict(zip(names, recipes.splitlines()[1::2], strict=True))
    assert "ensemble/stage3 on the protocol of the COD papers" in about["ensemble/stage3_cod"]
    assert "one expert with a backbone of its own" in about["experts/sinet"]  # its base says so
    assert all(len(line.strip()) > 20 for line in about.values())
    if SHIPPED_FILE.is_file():
        count = sum(v.numel() for v in read_weights(SHIPPED_FILE).values()) / 1e6
        size = SHIPPED_FILE.stat().st_size / 1e6
        assert f" experts, {count:.2f} M parameters, {size:.1f} MB" in trained


def test_a_pattern_and_weights_of_ones_own(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints_moe").mkdir()
    (tmp_path / "checkpoints_moe/router_best.pth").touch()
    assert load_config("router/stage2").default_hooks.best.name == "router"
    assert run_command(monkeypatch, "models", "router/stage2") is None
    lines = capsys.readouterr().out.splitlines()
    (made,) = [line for line in lines if "weights made here" in line]
    assert made.startswith("  router/stage2 ")
    assert made.endswith("COD10K, weights made here: checkpoints_moe/router_best.pth")
    assert run_command(monkeypatch, "models", "*", "--trained") is None
    assert "recipes" not in capsys.readouterr().out
    said = run_command(monkeypatch, "models", "nothing")
    assert said == "error: no name matches 'nothing'; codmoe models lists all"

"""The notebooks run, in miniature: fewer, smaller images, and one epoch of a small model."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from miniature import ONE_EXPERT, write_config

from codmoe.cli import command

DEMO = Path(__file__).resolve().parents[2] / "demo"
SMALLER = [
    *(("length=4,", "length=1,"), ("length=12,", "length=3,"), ("length=40,", "length=14,")),
    *(("image_size=320", "image_size=64"), ("image_size=192", "image_size=64")),
    *(("image_size=256", "image_size=64"), ("max_epochs=2", "max_epochs=1")),
]


def cells(name):
    notebook = json.loads((DEMO / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(name, changes)``: executes a notebook's cells; its variables."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    shown = SimpleNamespace(Image=Path, display=lambda path: path.read_bytes())
    monkeypatch.setitem(sys.modules, "IPython.display", shown)

    def execute(name, *changes):
        scope, waiting = {}, []
        for line in "\n".join("".join(cell["source"]) for cell in cells(name)).splitlines():
            for old, new in (*SMALLER, *changes):
                line = line.replace(old, str(new))
            if not line.startswith("!"):
                waiting.append(line)
                continue
            exec("\n".join(waiting), scope)
            waiting.clear()
            words = shlex.split(line[1:].format(**scope))  # as IPython does
            assert words[0] == "codmoe"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as left:
                command()
            assert not left.value.code, line
        exec("\n".join(waiting), scope)
        return scope

    return execute


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_saved_without_outputs_and_says_how_to_install(path):
    code = cells(path.stem)
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert "pip install -c requirements/constraints.txt -e ." in "".join(code[0]["source"])


def test_predict(run):
    found = run("predict")["predictions"]
    assert len(found) == 1 and Path("maps/000.png").is_file()


def test_own_pairs(run, tmp_path, capsys):
    best = dict(checkpoint_dir="checkpoints_moe", default_hooks=dict(best=dict(name="finetuned")))
    run("own_pairs", ("small/finetune", write_config(tmp_path, 1, ONE_EXPERT, best)))
    assert Path("checkpoints_moe/finetuned_best.pth").is_file()
    tested = json.loads(Path("test.json").read_text())["table"]
    assert [rows["mixture"]["n"] for rows in tested.values()] == [2]  # 15 % of 14


def test_paper_table(run, capsys):
    gain = run("paper_table")["gain"]
    assert len(gain) == 3
    printed = capsys.readouterr().out
    assert r"\toprule" in printed and "OURS" in printed
    assert len(cells("paper_table")) == 6  # how to install, and five

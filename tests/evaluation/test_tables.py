import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from codmoe.evaluation.tables import print_table, result_rows, save_json, to_markdown

TABLE = {
    "CAMO": {
        "sinet": {"Sm": 0.8, "MAE": 0.05, "IoU": 0.70001, "n": 250, "images": {}},
        "mixture": {"Sm": 0.9, "MAE": 0.04, "IoU": 0.7, "n": 250, "images": {}},
        "oracle": {"Sm": 0.95, "MAE": 0.03, "IoU": 0.8, "n": 250, "images": {}},
    },
    "NC4K": {"mixture": {"Sm": 0.85, "MAE": float("nan"), "IoU": 0.6, "n": 4121, "images": {}}},
}


def test_rows():
    rows = result_rows(TABLE, ["IoU", "MAE"], datasets=["CAMO"], sources=["mixture", "sinet"])
    assert rows[0] == {"dataset": "CAMO", "source": "mixture", "n": 250, "IoU": 0.7, "MAE": 0.04}
    assert len(rows) == 2
    assert list(result_rows(TABLE)[0]) == ["dataset", "source", "n", "IoU", "Sm", "MAE"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": ["iou"]}, "no metric 'iou'; did you mean 'IoU'"),
        ({"datasets": ["CAM0"]}, "no data set 'CAM0'; did you mean 'CAMO'"),
        ({"datasets": ["CAMO"], "sources": ["sinnet"]}, "did you mean 'sinet'"),
    ],
)
def test_mistakes_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        result_rows(TABLE, **given)


def test_markdown():
    text = to_markdown(result_rows(TABLE, ["Sm", "MAE", "IoU"]))
    lines = text.splitlines()
    assert lines[0] == "| data set | source | n | Sm | MAE | IoU |"
    assert lines[2] == "| CAMO | sinet | 250 | 0.8000 | 0.0500 | **0.7000** |"
    assert lines[3] == "| CAMO | mixture | 250 | **0.9000** | **0.0400** | **0.7000** |"
    assert lines[4] == "| CAMO | oracle | 250 | 0.9500 | 0.0300 | 0.8000 |"
    assert lines[5] == "| NC4K | mixture | 4121 | 0.8500 | - | 0.6000 |"
    # One line for the columns of each convention: S-measure and MAE are of the same map.
    notes = lines[7:]
    assert len(notes) == 3 and notes[2].startswith("- oracle: ")
    assert notes[0].startswith("- Sm (S-measure") and "MAE (mean absolute error" in notes[0]
    assert notes[1].startswith("- IoU (") and "> 0.5, not normalised" in notes[1]
    with pytest.raises(ValueError, match="no rows"):
        to_markdown([])


def test_terminal():
    console = Console(file=io.StringIO(), width=200)
    print_table(result_rows(TABLE, ["IoU"]), title="results", console=console)
    text = console.file.getvalue()
    assert "0.8000" in text and "4121" in text
    note = next(line for line in text.splitlines() if line.startswith("IoU ("))
    assert "probability > 0.5, not normalised" in note


def test_figures_are_whole_in_a_log_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table(result_rows(TABLE))
    assert "│ CAMO     │ oracle  │  250 │ 0.8000 │ 0.9500 │ 0.0300 │" in capsys.readouterr().out


def test_json_is_never_overwritten(tmp_path):
    path = tmp_path / "deep" / "results.json"
    for value in (1, 2):
        payload = {
            "a": np.float32(value),
            "b": torch.ones(2),
            "c": (Path("x"), float("nan")),
            "d": {3: 1},
        }
        assert save_json(path, payload) == path
    assert json.loads(path.read_text()) == {
        "a": 2.0,
        "b": [1.0, 1.0],
        "c": ["x", None],
        "d": {"3": 1},
    }
    old = [file for file in path.parent.iterdir() if file != path]
    assert len(old) == 1 and json.loads(old[0].read_text())["a"] == 1.0


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    save_json(path, {"a": 1})
    with pytest.raises(TypeError):
        save_json(path, {"a": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]

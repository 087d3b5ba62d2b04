import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from codmoe.files import keep_old, replacing, save_json


def test_keep_old_gives_a_dated_name_and_never_the_same_twice(tmp_path):
    path = tmp_path / "results.json"
    assert keep_old(path) is None
    kept = []
    for text in ("first", "second", "third"):
        path.write_text(text)
        kept.append(keep_old(path))
        assert not path.exists()
    assert re.fullmatch(r"results\.\d{8}-\d{6}\.json", kept[0].name)
    assert [old.read_text() for old in kept] == ["first", "second", "third"]


def test_replacing_writes_whole_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "new" / "folder" / "grid.png"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".png"
            temporary.write_text(text)
    assert path.read_text() == "new"
    others = [file for file in path.parent.iterdir() if file != path]
    assert [file.read_text() for file in others] == ["old"]


def test_replacing_leaves_everything_as_it_was_on_an_error(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert path.read_text() == "old"


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"), replacing(tmp_path):
        pass
    with pytest.raises(ValueError, match="is a folder"):
        keep_old(tmp_path)


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

import re

import pytest

from codmoe.files import keep_old, replacing


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

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from codmoe import files
from codmoe.files import (
    check_writable,
    holding,
    keep_old,
    new_folder,
    replacing,
    save_json,
    sweep,
    user_cache,
)


def test_the_cache_folder_is_made_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    folder = user_cache()
    assert folder == user_cache() == tmp_path / "a" / "b" / "codmoe"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match="is not this user's alone; chmod 700 it"):
        user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / "home" / ".cache" / "codmoe"


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path, code):
    path = tmp_path / "table.json"
    path.write_text("old")
    full = pytest.raises(OSError, match=r"cannot be written: .*free some room")
    with full as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(code, "as the system says it")
    assert caught.value.filename == str(path) and caught.value.errno == code
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "table.json", tmp_path / "file" / "deep" / "table.json"):
        with pytest.raises(
            NotADirectoryError, match="cannot be written: Not a directory"
        ) as caught:
            save_json(path, {})
        assert caught.value.filename == str(path)


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(OSError, match=r"cannot be written: Not a directory: '.*file/a\.json'"):
        check_writable(tmp_path / "file" / "a.json")
    with pytest.raises(ValueError, match="new is a folder; give the path of a file in it"):
        check_writable(tmp_path / "new")


def test_an_error_of_another_file_stays_its_own(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "grid.png"):
        Path("/no/such/image.png").read_bytes()
    assert caught.value.filename == "/no/such/image.png"


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "exported"
    with pytest.raises(RuntimeError), new_folder(out) as folder:
        (folder / "model.onnx").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(out) as folder:
        (folder / "model.onnx").write_text("whole")
    assert (out / "model.onnx").read_text() == "whole"
    with pytest.raises(ValueError, match="exported exists already"), new_folder(out):
        pass


def test_only_what_a_process_that_ended_left_is_swept(tmp_path, ended):
    with replacing(tmp_path / "living.pth") as living:
        living.write_text("half")
        pid = str(os.getpid())
        dead = tmp_path / living.name.replace(f"-{pid}-", f"-{ended}-")
        elsewhere = tmp_path / living.name.replace(files._HOST, "0" * 8)
        old = tmp_path / elsewhere.name.replace(pid, f"{ended}")
        folder = tmp_path / f"{dead.stem}f"
        folder.mkdir()
        kept = [tmp_path / name for name in (".mine.12345678.pth", ".codmoe-notes.txt", "a.pth")]
        for path in (dead, elsewhere, old, folder / "model.onnx", *kept):
            path.write_text("")
        os.utime(old, (1, 1))
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere, *kept])


def record(lock, **changes):
    """Leaves a lock as another process would."""
    other = dict(files._holder(), command="python tools/train.py other", **changes)
    lock.write_text(json.dumps(other))


def hold(lock):
    return holding(lock, "work_dirs/a", "give another --work-dir")


def test_a_lock_says_who_holds_it(tmp_path):
    lock = tmp_path / "work" / files.LOCK
    with hold(lock), pytest.raises(ValueError) as caught, hold(lock):
        pass
    text = (
        rf"work_dirs/a is in use by process {os.getpid()} on .* since 20.*\(python .*\); wait for "
        rf"it, or give another --work-dir. If it has ended, delete {re.escape(str(lock))}"
    )
    assert re.fullmatch(text, str(caught.value))
    with hold(lock):  # it was given back, also after an error
        pass
    assert not lock.exists()


def test_the_lock_of_a_process_that_ended_is_taken_over(tmp_path, ended, caplog):
    lock = tmp_path / files.LOCK
    for changes in (dict(pid=ended), dict(began="1")):  # the second: its number was given again
        record(lock, **changes)
        with hold(lock):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
        assert "took over work_dirs/a: process" in caplog.text and "has ended" in caplog.text
        assert not list(tmp_path.iterdir())
        caplog.clear()


def test_the_lock_of_another_machine_stands(tmp_path, ended, monkeypatch):
    lock = tmp_path / files.LOCK
    record(lock, host="node7", pid=ended)
    with (
        pytest.raises(ValueError, match=r"on node7 since .* has ended, delete .*lock$"),
        hold(lock),
    ):
        pass
    assert lock.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    record(lock, host="node7")
    with pytest.raises(ValueError, match="on node7"), hold(lock):  # another process of the same job
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(lock):  # but not of an attempt before this one
        pass


def test_a_lock_that_was_cut_off_does_not_hold_for_ever(tmp_path):
    lock = tmp_path / files.LOCK
    lock.write_text("")
    with pytest.raises(ValueError, match="its record cannot be read"), hold(lock):
        pass
    os.utime(lock, (time.time() - 60,) * 2)
    with hold(lock):
        pass


def test_a_lock_of_somebody_else_is_not_given_back(tmp_path):
    lock = tmp_path / files.LOCK
    with hold(lock):
        record(lock, host="node7")  # the folder was deleted, and another run made it anew
    assert "node7" in lock.read_text()


def test_of_many_that_come_at_once_one_holds(tmp_path, ended, processes):
    lock = tmp_path / files.LOCK
    record(lock, pid=ended)
    script = (
        "import os, sys; from codmoe.files import holding\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[2]): pass\n"  # until all go at once, or it is killed
        "with holding(sys.argv[1], 'it', 'wait'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(lock), str(tmp_path / "go")]
    for _ in range(4):
        processes.append(subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True))
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    (tmp_path / "go").write_text("")
    told = sorted(process.stdout.readline() for process in processes)
    for process in processes:
        process.communicate(timeout=60)
    assert told == ["", "", "", "held\n"]

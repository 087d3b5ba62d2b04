"""What is kept whole is checked as it is written and as it is read."""

import gc
import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from codmoe.compiled.whole import NotLoaded, load_whole, make_whole


class Compiled:
    """What torch gives and loads, of a guard that asks for the number of rows."""

    def __init__(self, rows):
        self.rows = rows

    def aot_compile(self, inputs):
        return Compiled(len(inputs[0][0]))

    def save_compiled_function(self, path):
        Path(path).write_text(str(self.rows))

    def guard_check(self, module, tensor):
        return len(tensor) == self.rows

    def prepare_f_locals(self, module, tensor):
        return tensor

    def source_info(self):
        return type("Info", (), dict(inlined_sources=[]))

    @property
    def _artifacts(self):
        return type("Artifacts", (), dict(guard_manager=self))

    def check_verbose(self, tensor):
        return type("Said", (), dict(verbose_code_parts=[f"rows == {self.rows}"]))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda method, **_: Compiled(None))
    load = lambda file, f_globals: Compiled(int(file.read()))  # noqa: E731
    monkeypatch.setattr(torch.compiler, "load_compiled_function", load)


def test_what_does_not_fit_or_is_damaged_is_kept_no_longer(tmp_path):
    method, path = nn.ReLU()._call_impl, tmp_path / "a.whole"
    with pytest.raises(FileNotFoundError):
        load_whole(method, path)
    make_whole(method, path, ((torch.ones(2),), {}))
    assert not load_whole(method, path, ((torch.ones(2),), {})).misfit((torch.ones(2),), {})
    load_whole(method, path)  # guards are asked later
    with pytest.raises(NotLoaded, match="rows == 2"):
        load_whole(method, path, ((torch.ones(3),), {}))
    assert not list(tmp_path.iterdir())
    path.write_text("no number")
    with pytest.raises(NotLoaded, match="ValueError: invalid literal"):
        load_whole(method, path)
    assert not list(tmp_path.iterdir())


def test_files_that_nobody_reads_are_removed_when_one_is_written(tmp_path):
    method, ones = nn.ReLU()._call_impl, ((torch.ones(2),), {})
    ago, names = time.time() - 31 * 24 * 3600, [f"{i:032x}" for i in range(5)]
    read, alone, mark, late, new = (tmp_path / f"{name}.whole" for name in names)
    mark = mark.with_suffix("")
    others = [tmp_path / name for name in ("cuda_0.lock", "notes.whole", "0" * 32 + ".txt")]
    for path in (read, alone, mark, late, *others):
        path.write_text("2")
        os.utime(path, (ago, ago))
    os.utime(late, (ago, ago + 2 * 24 * 3600))
    load_whole(method, read)
    make_whole(method, new, ones)
    assert set(tmp_path.iterdir()) == {read, late, new, *others}


def test_what_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "save_compiled_function", lambda _, path: Path(path).touch())
    with pytest.raises(NotLoaded, match="ValueError"):
        make_whole(nn.ReLU()._call_impl, tmp_path / "a.whole", ((torch.ones(2),), {}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_looked_for_after_loading_as_before_it(tmp_path, monkeypatch, before):
    method, path, seen = nn.ReLU()._call_impl, tmp_path / "a.whole", []

    def load(file, f_globals):
        seen.append(gc.isenabled())
        return Compiled(int(file.read()))

    monkeypatch.setattr(torch.compiler, "load_compiled_function", load)
    (gc.enable if before else gc.disable)()
    try:
        path.write_text("2")
        load_whole(method, path)
        assert gc.isenabled() is before
        path.write_text("no number")
        with pytest.raises(NotLoaded):
            load_whole(method, path)
        assert gc.isenabled() is before
    finally:
        gc.enable()
    assert seen == [False, False]

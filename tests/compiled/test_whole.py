"""What is kept whole is checked as it is written and as it is read."""

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


def test_what_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "save_compiled_function", lambda _, path: Path(path).touch())
    with pytest.raises(NotLoaded, match="ValueError"):
        make_whole(nn.ReLU()._call_impl, tmp_path / "a.whole", ((torch.ones(2),), {}))
    assert not list(tmp_path.iterdir())

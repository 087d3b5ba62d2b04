"""Compiled functions kept whole, with what torch's cache does not keep: who loads one traces
nothing.

They lie in torch's cache folder, which is the user's, and are read by pickle as torch reads its
own. What each was made for is checked when it is loaded and, by dynamo's guards, at each call.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from codmoe.compiled.graphs import reason_of
from codmoe.files import check_own

GRAPHING_MODES = ("reduce-overhead", "max-autotune")
"""Of ``torch.compile``, in which code is captured in CUDA graphs."""
DAYS = 30
"""For which a file is kept that nobody reads."""
OURS = re.compile(r"[0-9a-f]{32}(\.whole)?")
"""Names of files that are kept: compiled functions, and what their processes said."""


def kept_whole() -> Path:
    """The folder of what is kept, in torch's cache; made if it is not there.

    Raises:
        PermissionError: Others may write there: no pickle of theirs is read.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "codmoe"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_own(folder, "name another one in TORCHINDUCTOR_CACHE_DIR")
    return folder


def note_read(path: Path) -> None:
    """Notes that a file of the folder was read, by its time of access: some disks do not."""
    with contextlib.suppress(OSError):
        os.utime(path, (time.time(), path.stat().st_mtime))


def _remove_old(folder: Path) -> None:
    """Removes what was neither written nor read for :data:`DAYS`."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            state = path.lstat()
            old = time.time() - max(state.st_atime, state.st_mtime) > DAYS * 24 * 3600
            if old and OURS.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                path.unlink()


def compiler_settings() -> list[list]:
    """Of the compiler, as environment variables set them, too, without the number of compiling
    threads.
    """
    from torch._functorch import config as autograd  # late: takes time
    from torch._inductor import config as inductor

    return [sorted(one.save_config_portable().items()) for one in (inductor, autograd)]


class NotLoaded(RuntimeError):
    """What was kept does not fit, or is damaged."""


@contextlib.contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Autocast keeps no casts, which compiled code does not read. Guards ask whether it does: CUDA
    graphs are captured without, a training step runs with it.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing looks for garbage. What is loaded is many small objects that stay; while they come,
    all those of the process would be gone through again and again, a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _graphs(on: bool) -> Iterator[None]:
    """What is loaded is captured in torch's CUDA graphs when it first runs, or is not. torch keeps
    no mode with what it compiled, and asks its settings.
    """
    from torch._inductor import config  # late: takes time

    with config.patch({"triton.cudagraphs": on}):
        yield


class Whole:
    """A method of a module, compiled for inputs of one look.

    Args:
        function: What torch compiled ahead of time or loaded.
        module: The module; any that looks the same.
    """

    def __init__(self, function: Any, module: Any):
        self.function, self.module = function, module

    def misfit(self, args: tuple, kwargs: Mapping[str, Any]) -> str:
        """The guard by which the module or these inputs are not as it was compiled for; empty if
        they still are.
        """
        if self.function.guard_check(self.module, *args, **kwargs):
            return ""
        found = self.function.prepare_f_locals(self.module, *args, **kwargs)
        parts = self.function._artifacts.guard_manager.check_verbose(found).verbose_code_parts
        return " ".join(map(str, parts))[:200] or "a guard fails"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.fn(self.module, *args, **kwargs)  # guards were asked

    def save(self, path: Path) -> None:
        """Keep it in a file of torch's cache folder."""
        # Never seen half written; torch 2.11 would write in place.
        with tempfile.TemporaryDirectory(dir=path.parent) as private:
            file = Path(private) / path.name
            self.function.save_compiled_function(str(file))
            os.replace(file, path)
        _remove_old(path.parent)


def make_whole(
    method: MethodType, path: Path, inputs: tuple[tuple, dict[str, Any]], mode: str | None = None
) -> Whole:
    """Compile a method of a module ahead of time for the state it and this thread are in, keep it
    in a file, and load it from there as the next start will.

    Raises:
        NotLoaded: What torch wrote cannot be used.
        Exception: Whatever torch says of one that is more than a single graph.
    """
    with torch._dynamo.config.patch(enable_aot_compile=True):
        fast: Any = torch.compile(method, dynamic=False, fullgraph=True, mode=mode)
        Whole(fast.aot_compile(inputs), method.__self__).save(path)
    return load_whole(method, path, inputs, mode)


def load_whole(
    method: MethodType,
    path: Path,
    inputs: tuple[tuple, dict[str, Any]] | None = None,
    mode: str | None = None,
) -> Whole:
    """What :func:`make_whole` kept of the same method of such a module; guards are asked about
    ``inputs`` if they are given. What does not fit is removed. Call it under the same autocast and
    grad mode as the method, and within :func:`no_autocast_cache` if it was compiled so.

    Raises:
        FileNotFoundError: Nothing was kept.
        NotLoaded: It does not fit, or is damaged.
    """
    try:
        with path.open("rb") as file, _no_collection(), _graphs(mode in GRAPHING_MODES):
            function: Any = torch.compiler.load_compiled_function(
                file, f_globals=method.__func__.__globals__
            )
        inlined = {(one.module, one.content) for one in function.source_info().inlined_sources}
        changed = sorted(name for name, content in inlined if _source(name) != content)
        whole = Whole(function, method.__self__)
        misfit = whole.misfit(*inputs) if inputs else ""
        misfit = f"{changed[0]} has changed" if changed else misfit
    except FileNotFoundError:
        raise
    except Exception as error:  # of pickle, of what is no longer there
        misfit = reason_of(error)
    if misfit:
        path.unlink(missing_ok=True)
        raise NotLoaded(misfit)
    note_read(path)
    return whole


@functools.cache
def _source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))

"""Captures, on a stand-in for the GPU."""

import gc
import getpass
import os
import tempfile
import weakref
from contextlib import contextmanager, nullcontext

import torch

from codmoe.compiled import graphs
from codmoe.compiled.graphs import Preparer


def test_the_graph_of_a_broken_capture_stays_with_its_stream(monkeypatch):
    """With it would go memory in which the graphs captured before it on this stream compute."""
    graphs, used = [], []

    class Graph:
        def __init__(self):
            graphs.append(weakref.ref(self))

        def replay(self):
            pass

    @contextmanager
    def capture(graph, stream, **options):
        used.append(stream)
        yield

    fakes = dict(
        CUDAGraph=Graph, graph=capture, graph_pool_handle=object, synchronize=lambda *_: None
    )
    fakes |= dict(device=lambda _: nullcontext(), stream=lambda _: nullcontext())
    fakes |= dict(Stream=lambda *_: object(), current_stream=lambda *_: None)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    preparer = Preparer(torch.device("cpu"), "eager")
    preparer.captures = True
    preparer._begin_anew()

    def breaks():
        if len(used) == 2:
            raise torch.OutOfMemoryError

    kept = [preparer("good", lambda: None), preparer("bad", breaks), preparer("next", lambda: None)]
    gc.collect()
    assert [graph() is not None for graph in graphs] == [True, True, True] and kept[1] is breaks
    assert used[0] is used[1] is not used[2]
    del preparer
    gc.collect()
    assert [graph() is not None for graph in graphs] == [True, False, True]


def test_what_torch_compiles_lies_in_the_users_cache_unless_they_say_otherwise(
    tmp_path, monkeypatch
):
    variable, own = "TORCHINDUCTOR_CACHE_DIR", tmp_path / "codmoe" / "inductor"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for before in (None, f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"):
        monkeypatch.delenv(variable, raising=False)
        if before:
            monkeypatch.setenv(variable, before)
        graphs.keep_compiled()
        assert os.environ[variable] == str(own)
    for named in ("/scratch/mine", "/tmp/other/torchinductor_me"):
        monkeypatch.setenv(variable, named)
        graphs.keep_compiled()
        assert os.environ[variable] == named
    own.parent.chmod(0o777)
    monkeypatch.delenv(variable)
    graphs.keep_compiled()
    assert variable not in os.environ, "others could write there"

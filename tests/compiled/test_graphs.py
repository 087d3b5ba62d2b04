"""Captures, on a stand-in for torch's 32 streams."""

import gc
import getpass
import os
import tempfile
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from recorded_passes import stand_in

from codmoe.compiled import graphs
from codmoe.compiled.graphs import STREAMS, NoStreamLeft, Preparer, capture, take


class Owner:
    def __init__(self):
        self.stream = take(self)


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(graphs, "_taken", type(graphs._taken)())
    monkeypatch.setattr(graphs, "_broken", set())


def handles(owners):
    return {owner.stream.cuda_stream for owner in owners}


def test_a_stream_comes_back_when_its_owner_goes():
    stay = [Owner() for _ in range(20)]
    for _ in range(5 * STREAMS):  # in turn, torch would give out those of the others, too
        assert not handles([Owner()]) & handles(stay)
    gc.collect()
    all_of_them = stay + [Owner() for _ in range(STREAMS - 20)]
    assert len(handles(all_of_them)) == STREAMS
    with pytest.raises(NoStreamLeft, match="each of torch's 32 streams"):
        Owner()
    del stay[0], all_of_them
    assert handles([Owner()])


def test_the_stream_of_a_broken_capture_is_left_alone():
    used, graph = [], torch.cuda.graph
    stream = take(owner := Owner())

    def breaks():
        used.append(torch.cuda.graph.keywords)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        capture(breaks, stream)
    assert torch.cuda.graph is graph
    assert used == [dict(stream=stream, capture_error_mode="thread_local")]
    del owner
    gc.collect()
    rest = [Owner() for _ in range(STREAMS - 1)]
    assert stream.cuda_stream not in handles(rest)
    with pytest.raises(NoStreamLeft):
        Owner()


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
    fakes |= dict(device=lambda _: nullcontext())
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

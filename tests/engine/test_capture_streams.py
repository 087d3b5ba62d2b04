"""A stream for each graph that lives, on a stand-in for torch's 32."""

import gc

import pytest
import torch
from recorded_passes import stand_in

from codmoe.compiled import graphs as capture_streams
from codmoe.compiled.graphs import STREAMS, NoStreamLeft, capturing_on, take


class Owner:
    def __init__(self):
        self.stream = take(self)


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(capture_streams, "_held", type(capture_streams._held)())
    monkeypatch.setattr(capture_streams, "_broken", set())


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
    with pytest.raises(RuntimeError, match="out of memory"), capturing_on(stream):
        used.append(torch.cuda.graph.keywords)
        raise RuntimeError("out of memory")
    assert torch.cuda.graph is graph
    assert used == [dict(stream=stream, capture_error_mode="thread_local")]
    del owner
    gc.collect()
    rest = [Owner() for _ in range(STREAMS - 1)]
    assert stream.cuda_stream not in handles(rest)
    with pytest.raises(NoStreamLeft):
        Owner()

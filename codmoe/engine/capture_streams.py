"""Streams on which CUDA graphs are captured: one for each graph that lives.

cuBLAS works in memory that torch keeps for each stream. When a graph goes, torch frees that of the
stream on which it was captured, and every other graph of this stream computes in memory that is
somebody else's by then (pytorch#193402). Seen on an H100 with torch 2.11: gradients were NaN from
the step on in which the backbone's warm-up ended and its graphs were captured anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

STREAMS = 32
"""That torch has on a GPU, and gives out in turn."""

_held: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
# Handles of streams on which a capture broke off, and may still be under way.
_broken: set[int] = set()


class NoStreamLeft(RuntimeError):
    """Every stream has a graph, or a capture that broke off."""


def take(owner: Any) -> torch.cuda.Stream:
    """A stream that is nobody else's as long as ``owner`` lives.

    Raises:
        NoStreamLeft: All are taken.
    """
    taken = _broken | set(_held.values())
    for _ in range(STREAMS):
        stream = torch.cuda.Stream()
        if stream.cuda_stream not in taken:
            _held[owner] = stream.cuda_stream
            return stream
    raise NoStreamLeft(f"each of torch's {STREAMS} streams has a CUDA graph or a broken capture")


@contextmanager
def capturing_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Has ``torch.cuda.graph`` capture on ``stream``.

    Other threads, which pin batches, may go on; the stream of a broken capture is left alone.
    """
    graph = torch.cuda.graph
    torch.cuda.graph = partial(graph, stream=stream, capture_error_mode="thread_local")
    try:
        with torch.cuda.stream(torch.cuda.current_stream()):
            yield
    except Exception:
        _broken.add(stream.cuda_stream)
        raise
    finally:
        torch.cuda.graph = graph

"""CUDA graphs: the capture, and pieces of work that are run by them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from codmoe.files import user_cache

Work = Callable[[], None]
"""Reads tensors that stay where they are, and writes others."""

T = TypeVar("T")
BACKENDS = ("auto", "eager", "cudagraph", "inductor")
WARM_UP = 3


def warm_up(work: Callable[[], Any], stream: torch.cuda.Stream) -> None:
    """Run work some times on a stream: what is done once, such as choosing algorithms or compiling,
    cannot be captured.
    """
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.synchronize()


def capture(
    graph: torch.cuda.CUDAGraph, work: Callable[[], T], stream: torch.cuda.Stream, pool: Any = None
) -> T:
    """Capture work that was warmed up on a stream. Other threads, which load and pin batches, may
    go on.

    Args:
        graph: What is filled.
        work: Its result lies where every replay writes it anew.
        stream: Where the graph is captured.
        pool: Memory that graphs share; by default each has its own.
    """
    how: dict[str, Any] = dict(pool=pool, stream=stream, capture_error_mode="thread_local")
    # After a broken capture torch would stay on its stream.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, **how):
        return work()


def captured_anew() -> int:
    """How often torch has captured graphs of ``torch.compile`` since this process began where it
    ran captured ones before: once a step where an address that they read, or how long a tensor
    lives, is never as it was.
    """
    if not torch.cuda.is_available():
        return 0
    from torch._inductor.cudagraph_trees import get_manager  # late: takes time

    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    return getattr(manager, "debug_fail_counter", 0)


@dataclass
class Piece:
    """How one piece of work runs.

    Args:
        name: Part, and the sizes it runs at.
        how: ``"inductor"``, ``"CUDA graph"``, both, or ``"eager"``.
        seconds: What the preparation took.
        reason: Why it does not run as it was asked to; empty if it does.
    """

    name: str
    how: str
    seconds: float
    reason: str = ""

    def __str__(self) -> str:
        because = f" ({self.reason})" if self.reason else ""
        return f"{self.name}: {self.how}, prepared in {self.seconds:.1f} s{because}"


def keep_compiled() -> None:
    """Has torch keep what it compiles in the user's cache folder, unless a variable of the
    environment names another.

    It reads it back by pickle. Its own choice is a folder of a known name in ``/tmp``, which
    another user may make first, and which does not outlast a restart.
    """
    variable = "TORCHINDUCTOR_CACHE_DIR"
    here, name = os.path.split(os.environ.get(variable, ""))
    # torch sets it to its own choice when it is imported.
    if not name or (here == tempfile.gettempdir() and name.startswith("torchinductor_")):
        with suppress(OSError):  # a home that cannot be written
            os.environ[variable] = str(user_cache() / "inductor")


def settle_backend(backend: str, device: torch.device) -> tuple[str, str]:
    """The backend to use and, where it is not the one asked for, why.

    Raises:
        ValueError: There is no such backend.
    """
    if backend not in BACKENDS:
        choices = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"backend={backend!r} is unknown; use one of {choices}")
    if device.type == "cuda":
        return ("cudagraph" if backend == "auto" else backend), ""
    if backend in ("auto", "cudagraph"):
        return "eager", f"CUDA graphs need a GPU, and the model is on {device.type}"
    return backend, ""


class Preparer:
    """Makes pieces of work ready to run again and again.

    All graphs allocate from one pool of memory: what one computes on the way lies where another
    does, so no graph may leave a result there. Work writes its results to tensors of its own that
    it allocates when it first runs, which is never under capture.

    Args:
        device: Where the work is done.
        backend: ``"eager"``, ``"cudagraph"`` or ``"inductor"`` (on a GPU captured as well).
        keep: A part's name, the part and arguments → it compiled for them and kept, or None.
    """

    def __init__(
        self,
        device: torch.device,
        backend: str,
        keep: Callable[[str, Callable, tuple], Callable | None] | None = None,
    ):
        self.device, self.backend, self.keep = device, backend, keep
        self.eager = backend == "eager"
        """Whether all runs as it is, on any shapes and by any operator."""
        self.captures = backend != "eager" and device.type == "cuda"
        self.pieces: list[Piece] = []
        self._reasons: dict[str, str] = {}
        # With a graph goes the memory in which cuBLAS works on its stream, and with that what the
        # graphs captured there before compute in (pytorch#193402): a broken one stays.
        self._kept: list[torch.cuda.CUDAGraph] = []
        if self.captures:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """A pool and a stream, also after a broken capture, which may hold on to its own."""
        self.pool = torch.cuda.graph_pool_handle()
        self._streams: dict[str, list[torch.cuda.Stream]] = {}
        # One for all: cuBLAS keeps a workspace for each stream it ran on.
        self.stream = torch.cuda.Stream(self.device)

    def streams(self, owner: str, count: int) -> list[torch.cuda.Stream]:
        """``count`` streams that are ``owner``'s alone; none where nothing is captured."""
        if self.device.type != "cuda" or not self.captures:
            return []
        streams = self._streams.setdefault(owner, [])
        while len(streams) < count:
            streams.append(torch.cuda.Stream(self.device))
        return streams

    def compiled(self, name: str, function: Callable) -> Callable:
        """``function``, compiled if the backend compiles; uncompiled for good after a failure."""
        if self.backend != "inductor":
            return function
        keep_compiled()
        fast = torch.compile(function, dynamic=False)

        def call(*args):
            if name in self._reasons:
                return function(*args)
            found = self.keep and self.keep(name, function, args)
            try:
                return (found or fast)(*args)
            except Exception as error:
                if self.captures and torch.cuda.is_current_stream_capturing():
                    raise  # that is the capture's failure
                self._reasons[name] = f"not compilable: {reason_of(error)}"
                return function(*args)

        return call

    def __call__(self, name: str, work: Work) -> Work:
        """Run ``work`` once, and prepare it.

        Args:
            name: ``"part, sizes"``.
            work: What to prepare.

        Returns:
            What to call from now on.
        """
        started = time.perf_counter()
        with _many_shapes(self.backend == "inductor"):
            work()  # allocates its results, compiles
            run, failure = (work, "")
            if self.captures:
                try:
                    run = self._captured(work)
                except Exception as error:  # out of memory, or the work waits for the device
                    # The end of a broken capture fails, too; the first error says more.
                    failure = f"not capturable: {reason_of(error.__context__ or error)}"
                    self._begin_anew()
        parts = name.split(",")[0].split(" + ")
        failures = [r for p, r in self._reasons.items() if p.removeprefix("experts.") in parts]
        how = ["inductor"] if self.backend == "inductor" and not failures else []
        how += ["CUDA graph"] if run is not work else []
        reason = "; ".join(filter(None, [*failures, failure]))
        seconds = time.perf_counter() - started
        self.pieces = [piece for piece in self.pieces if piece.name != name]
        self.pieces.append(Piece(name, ", ".join(how) or "eager", seconds, reason))
        return run

    def _captured(self, work: Work) -> Work:
        benchmark = torch.backends.cudnn.benchmark
        # Shapes are fixed: the fastest algorithm of each convolution is found here, once.
        torch.backends.cudnn.benchmark = True
        try:
            with torch.cuda.device(self.device):
                warm_up(work, self.stream)
                graph = torch.cuda.CUDAGraph()
                self._kept.append(graph)
                capture(graph, work, self.stream, self.pool)
                self._kept.pop()
        finally:
            torch.backends.cudnn.benchmark = benchmark
            torch.cuda.synchronize(self.device)  # after a failure, too, nothing is under way
        return graph.replay


def run_beside(works: Sequence[Work], streams: Sequence[torch.cuda.Stream]) -> None:
    """Run independent works at once: the first on the current stream, each other on one of
    ``streams``; what follows on the current stream waits for all. Without enough streams, in turn.

    A stream reuses its freed memory at its next use, which waits for the current stream of then. So
    that nobody still reads that memory, ``streams`` must be those of one owner, who always calls
    from the same stream or from one that has waited for it. Under capture they are branches of the
    one graph.
    """
    if len(works) < 2 or len(streams) < len(works) - 1:
        for work in works:
            work()
        return
    main = torch.cuda.current_stream(streams[0].device)
    for stream, work in zip(streams, works[1:], strict=False):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            work()
    works[0]()
    for stream in streams[: len(works) - 1]:
        main.wait_stream(stream)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


@contextmanager
def _many_shapes(compiles: bool):
    """Beyond a number of shapes torch would run uncompiled, and say so only in a warning."""
    if not compiles:
        yield
        return
    config = torch._dynamo.config
    limits = ("recompile_limit", "accumulated_recompile_limit")
    with config.patch({limit: 1024 for limit in limits if hasattr(config, limit)}):
        yield

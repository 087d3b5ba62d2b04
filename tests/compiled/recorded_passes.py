"""What ``torch.cuda.make_graphed_callables`` does, on the CPU: records the operations of a forward
and a backward pass, repeats them.

As on a GPU, Python does not run again and every number lies where it lay: inputs are copied there,
parameters and statistics are read there, results and gradients are overwritten by the next replay.
A number that Python reads is an error, and what was computed on the way is NaN after the backward
pass, as memory that others use by then. When a graph goes, so does the memory in which cuBLAS works
on the stream that it was captured on (pytorch#193402): other graphs of that stream give NaN.
"""

import itertools
import threading
import weakref
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from codmoe.compiled import graphs as all_graphs
from codmoe.compiled import train_graphs

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.item")


class Recording(TorchDispatchMode):
    """Records in a ``with`` statement; each operation writes where its result lay then."""

    def __init__(self):
        super().__init__()
        self.steps = []

    @classmethod
    def ignore_compile_internals(cls):
        """Compiled code is recorded, too, where torch would run it uncompiled."""
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(WAITS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        args, kwargs = tree_map(without_graph, (args, kwargs or {}))
        self.steps.append((func, args, kwargs, [x.detach() for x in tensors(result)]))
        return result

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, places in self.steps:
                given = {address(x) for x in tensors((args, kwargs))}
                results = tensors(func(*args, **kwargs))
                for place, result in zip(places, results, strict=True):
                    if address(place) not in given:  # in place, or a view
                        place.copy_(result)

    def own(self, outside):
        """Memory of what is computed here, without that of ``outside``, by address."""
        found, outside = {}, {address(x) for x in outside}
        for _, args, kwargs, places in self.steps:
            outside |= {address(x) for x in tensors((args, kwargs))} - found.keys()
            found |= {address(x): x for x in places if address(x) not in outside}
        return found


class Graphed:
    """Stands in for ``torch.cuda.make_graphed_callables``, called once for each graph."""

    def __init__(self):
        self.captures = self.replays = 0
        self.failure = None
        """What goes wrong in a capture."""
        self._memory = []
        self._of_stream = {}

    @property
    def kept(self):
        """Graphs whose memory is still held."""
        return sum(memory() is not None for memory in self._memory)

    def __call__(self, run, inputs, num_warmup_iters=3, allow_unused_input=False):
        learning = [x for x in inputs if x.requires_grad]

        def backward(outputs, gradients):
            unused = dict(only_inputs=True, allow_unused=allow_unused_input)
            return torch.autograd.grad(outputs, learning, gradients, **unused)

        for _ in range(num_warmup_iters):
            outputs = [x for x in run(*inputs) if x.requires_grad]
            if outputs:
                backward(outputs, [torch.empty_like(x) for x in outputs])
        with Recording() as forward:
            results = run(*inputs)
            if self.failure is not None:
                raise self.failure
        outputs = [x for x in results if x.requires_grad]
        incoming = [torch.full_like(x, torch.nan) for x in outputs]
        with Recording() as back:
            found = iter(backward(outputs, incoming) if outputs else ())
        gradients = [next(found, None) if x.requires_grad else None for x in inputs]
        kept = [x for x in (*inputs, *results, *incoming, *gradients) if x is not None]
        lost = forward.own(kept) | back.own(kept)
        self.captures += 1
        kept = incoming[0] if incoming else results[0]
        self._memory.append(weakref.ref(kept))
        spoilt = self._workspace(kept)
        return self._function(inputs, results, incoming, gradients, forward, back, lost, spoilt)

    def _workspace(self, kept):
        """Set when the graph that keeps ``kept`` has lost the workspace of its stream."""
        stream = getattr(torch.cuda.graph, "keywords", {}).get("stream")
        users = self._of_stream.setdefault(getattr(stream, "cuda_stream", None), set())
        spoilt = threading.Event()
        users.add(spoilt)

        def gone():
            users.remove(spoilt)
            for other in users:
                other.set()

        weakref.finalize(kept, gone)
        return spoilt

    def _function(self, inputs, results, incoming, gradients, forward, back, lost, spoilt):
        graphs = self

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *given):
                for place, value in zip(inputs, given, strict=True):
                    if place.data_ptr() != value.data_ptr():
                        place.detach().copy_(value)
                forward.replay()
                graphs.replays += 1
                return tuple(x.detach() for x in results)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, *given):
                wanted = [g for g, x in zip(given, results, strict=True) if x.requires_grad]
                for place, value in zip(incoming, wanted, strict=True):
                    place.copy_(value)
                back.replay()
                for memory in lost.values():
                    if memory.is_floating_point():
                        whole = (memory.untyped_storage().nbytes() // memory.itemsize,)
                        memory.as_strided(whole, (1,), 0).fill_(torch.nan)
                if spoilt.is_set():
                    for gradient in tensors(gradients):
                        gradient.fill_(torch.nan)
                return tuple(g if g is None else g.detach() for g in gradients)

        return Replay.apply


def stand_in(monkeypatch):
    """Have parts captured on the CPU, as on a GPU; returns what counts captures and replays."""
    graphs = Graphed()
    monkeypatch.setattr(train_graphs, "_on_gpu", lambda leaf: isinstance(leaf, torch.Tensor))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs)
    for name in ("synchronize", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    # Torch has so many streams, and gives them out in turn.
    numbers = itertools.count()

    class Stream:
        def __init__(self, *_):
            self.cuda_stream = 1 + next(numbers) % all_graphs.STREAMS

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    return graphs


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def without_graph(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


def address(tensor):
    return tensor.untyped_storage().data_ptr()

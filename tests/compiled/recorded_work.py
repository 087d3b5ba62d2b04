"""What a CUDA graph does, on the CPU: records the operations of a piece of work, repeats them.

As in a graph, Python does not run again, tensors from outside are used where they lie, a number
that Python reads is an error, and what was computed on the way is lost: overwritten with NaN.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from codmoe.compiled.graphs import Preparer

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.item")


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(WAITS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result


class RecordingPreparer(Preparer):
    """Prepares as on a GPU; see the module."""

    def __init__(self, preparer=None):
        super().__init__(torch.device("cpu"), "cudagraph")
        self.captures = True
        self.replays = 0

    def _begin_anew(self):
        pass

    def _captured(self, work):
        with Recorder() as recorder:
            work()
        steps = recorder.steps
        produced, outside = set(), set()
        for _, args, kwargs, result in steps:
            for tensor in tree_flatten((args, kwargs))[0]:
                if isinstance(tensor, torch.Tensor) and id(tensor) not in produced:
                    outside.add(tensor.untyped_storage().data_ptr())
            produced |= {id(tensor) for tensor in tree_flatten(result)[0]}

        def replay():
            self.replays += 1
            values = {}

            def now(x):
                return values.get(id(x), x) if isinstance(x, torch.Tensor) else x

            for func, args, kwargs, old in steps:
                new = func(*tree_map(now, args), **tree_map(now, kwargs))
                for before, after in zip(tree_flatten(old)[0], tree_flatten(new)[0], strict=True):
                    if isinstance(before, torch.Tensor):
                        values[id(before)] = after
            for value in values.values():
                storage = value.untyped_storage()
                if value.is_floating_point() and storage.data_ptr() not in outside:
                    whole = (storage.nbytes() // value.itemsize,)
                    value.as_strided(whole, (1,), 0).fill_(float("nan"))

        return replay

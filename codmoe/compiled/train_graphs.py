"""Training passes of whole parts as CUDA graphs: two launches where there were thousands."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from codmoe.compiled.graphs import NoStreamLeft, capture, take, warm_up
from codmoe.compiled.speed import GRAPHED, InTraining
from codmoe.structures import ExpertOutput

MOST_GRAPHS = 6
"""Graphs of one part; each keeps its activations for good."""


def graph_parts(model: nn.Module, options: Mapping[str, Any] | None) -> list[str]:
    """Have parts of a model captured in CUDA graphs when training first calls them on a GPU.

    Config: top-level ``train_graphs = dict(backbone=True, experts=True)``. A graph is of one size:
    inputs of another get another graph, and beyond ``MOST_GRAPHS`` sizes they run without. Names in
    the state dict do not change. Evaluation runs as ever. Gradients have to be None before each
    backward pass, as ``zero_grad()`` leaves them: they lie where the graph writes. Of a part that
    :func:`compile_parts` was given before, the compiled code is captured.

    Returns:
        Names of the parts, e.g. ``"experts.sinet"``.
    """
    names = []
    for part in (part for part in GRAPHED if (options or {}).get(part)):
        if setting := _computed_again(model, part):
            log = f"{part}: without CUDA graphs, which {setting} would overwrite in backward passes"
            print_log(log, logger="current", level=logging.WARNING)
            continue
        module = model.get_submodule(part)
        regions = module.named_children() if part == "experts" else [("", module)]
        for name, region in regions:
            names.append(f"{part}.{name}" if name else part)
            region._compiled_call_impl = _GraphedPart(region, names[-1])
    return names


@contextmanager
def without_graphs(model: nn.Module) -> Iterator[None]:
    """Parts that :func:`graph_parts` was given run as before it, and none is captured."""
    calls = [module._compiled_call_impl for module in model.modules()]
    parts = [call for call in calls if isinstance(call, _GraphedPart)]
    for part in parts:
        part.aside = True
    try:
        yield
    finally:
        for part in parts:
            part.aside = False


def _computed_again(model: nn.Module, part: str) -> str | None:
    """The setting by which a part is computed again in the backward pass."""
    if part == "backbone" and getattr(model, "checkpoint_backbone", None) is not None:
        return f"checkpoint_backbone={model.checkpoint_backbone!r}"
    execution = getattr(getattr(model, "expert_training", None), "execution", None)
    if part == "experts" and execution == "checkpoint":
        return "expert_execution='checkpoint'"
    return None


class _GraphedPart:
    """Calls a module by its graphs while it trains; otherwise, and for good after a failure, as it
    was called before: compiled or not.

    It stands where ``nn.Module.compile`` puts its function, which neither copies nor state dicts
    take along.
    """

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name
        compiled = module._compiled_call_impl
        self.compiled = compiled if isinstance(compiled, InTraining) else None
        self.graphs: dict[tuple, _Graph] = {}
        self.given: list[Sequence[Tensor]] = []
        self.state: bytes | None = None
        self.aside = self.failed = self.full = False

    def __call__(self, *args, **kwargs):
        plain = self.compiled or self.module._call_impl
        if self.aside or self.failed or not self.module.training:
            return plain(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        if not (torch.is_grad_enabled() and leaves and all(map(_on_gpu, leaves))):
            return plain(*args, **kwargs)
        self._follow(leaves)
        key = (str(spec), *map(_looks, leaves), *_autocast())
        graph = self.graphs.get(key)
        if graph is None and len(self.graphs) >= MOST_GRAPHS and not self.full:
            self._log(f"beyond {MOST_GRAPHS} sizes of its inputs, it runs without CUDA graph")
            self.full = True
        if graph is None and self.full:
            return plain(*args, **kwargs)
        if graph is None:
            graph = self._captured(leaves, spec)
            if graph is None:
                return plain(*args, **kwargs)
            self.graphs[key] = graph
        # A second pass before the backward pass of the first would overwrite its activations.
        return plain(*args, **kwargs) if graph.busy else graph(leaves, self._parameters(graph))

    def _parameters(self, graph: _Graph) -> Sequence[Tensor]:
        """Those of one pass. Where a step has several, of other sizes, all of them go through one
        node, which adds up their gradients.
        """
        uses, parameters = len(self.graphs), graph.parameters
        if uses < 2 or not parameters:
            return parameters
        if not any(other.busy for other in self.graphs.values()):
            self.given.clear()  # another step begins
        if not self.given:
            flat, count = _ForPasses.apply(uses, *parameters), len(parameters)
            self.given = [flat[i : i + count] for i in range(0, len(flat), count)]
        return self.given.pop()

    def _follow(self, leaves: list[Tensor]) -> None:
        """Drop graphs of another training: who learns and whose statistics stand may change, as
        after the epochs in which the backbone is held, and experts send it no gradient.
        """
        state = bytes(x.requires_grad for x in (*leaves, *self.module.parameters()))
        state += bytes(module.training for module in self.module.modules())
        if state != self.state:
            self._drop()
            self.state = state

    def _drop(self) -> None:
        self.full = False
        self.given.clear()
        if self.graphs:
            self.graphs.clear()
            gc.collect()  # torch keeps a graph's memory in a class, which refers to itself

    def _captured(self, leaves: list[Tensor], spec: TreeSpec) -> _Graph | None:
        started = time.perf_counter()
        buffers = [(b, b.clone()) for b in self.module.buffers()]
        self.aside = True
        try:
            graph = _Graph(self.module, leaves, spec)
            self._warm_up(graph)
            graph.capture()
        except NoStreamLeft as error:
            graph, self.full = None, True
            self._log(f"further sizes of its inputs run without CUDA graph: {error}")
        except Exception as error:  # out of memory, or the region waits for the device
            self._give_up(error)
            graph = None
        finally:
            self.aside = False
        if graph is None:
            gc.collect()  # before its stream is given out again
        torch.cuda.synchronize()
        with torch.no_grad():  # warming up has moved batch-norm statistics
            for buffer, before in buffers:
                buffer.copy_(before)
        if graph is not None:
            shape = " × ".join(map(str, leaves[0].shape))
            seconds = time.perf_counter() - started
            self._log(f"CUDA graph for {shape} captured in {seconds:.1f} s", logging.INFO)
        return graph

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        self._drop()
        # The end of a broken capture fails, too; the first error says more.
        cause = error.__context__ or error
        reason = (str(cause).strip().splitlines() or [""])[0][:200]
        self._log(
            f"cannot be captured in a CUDA graph and runs without: {type(cause).__name__}: {reason}"
        )

    def _warm_up(self, graph: _Graph) -> None:
        compiled = self.compiled
        if compiled is None or compiled.failed:
            return graph.warm_up()
        try:
            return graph.warm_up()
        except torch.OutOfMemoryError:
            raise  # eager code would need more
        except Exception as error:  # a backward pass is compiled when it first runs
            compiled.give_up(error)
        graph.warm_up()

    def _log(self, text: str, level: int = logging.WARNING) -> None:
        print_log(f"{self.name}: {text}", logger="current", level=level)


class _Graph:
    """Forward and backward pass of a module for inputs of one size.

    Parameters are inputs of the graph, captured as leaves of their own on the same memory: those of
    the module may already have hooks and streams, which DDP gave them, and no capture may touch.
    """

    def __init__(self, module: nn.Module, leaves: list[Tensor], spec: TreeSpec):
        self.module, self.spec, self.count = module, spec, len(leaves)
        self.autocast = _autocast()
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.static = [x.detach().clone().requires_grad_(x.requires_grad) for x in leaves]
        # As parameters: what was compiled for them is not compiled once more.
        self.static += [nn.Parameter(p.detach()) for p in self.parameters]
        self.replay: Callable[..., tuple[Tensor, ...]]
        self.pending: Callable[[], _Pending | None] = lambda: None
        self.stream = take(self)

    def _run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = tree_unflatten(list(tensors[: self.count]), self.spec)
        own = dict(zip(self.names, tensors[self.count :], strict=True))
        enabled, dtype = self.autocast
        # Only the forward pass is under autocast, as in any training step.
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            result, self.restore = _flat(functional_call(self.module, own, args, kwargs))
        self.differentiable = [tensor.requires_grad for tensor in result]
        return result

    def warm_up(self) -> None:
        """Both passes, as what is done once (choosing algorithms, compiling) cannot be captured.

        ``make_graphed_callables`` would do it, too, but keeps the results of its last pass;
        gradients of the captured one would then go by nodes of another stream, of which torch
        warns.
        """
        learning = [x for x in self.static if x.requires_grad]

        def both_passes() -> None:
            # Results and their nodes are gone before the next pass or the capture.
            outputs = [x for x in self._run(*self.static) if x.requires_grad]
            if outputs:
                incoming = [torch.empty_like(x) for x in outputs]
                torch.autograd.grad(outputs, learning, incoming, allow_unused=True)

        with torch.autocast("cuda", enabled=False):
            warm_up(both_passes, self.stream)

    def capture(self) -> None:
        """After :meth:`warm_up`."""
        settings = dict(num_warmup_iters=0, allow_unused_input=True)
        record: Callable[[], Any] = partial(
            torch.cuda.make_graphed_callables, self._run, tuple(self.static), **settings
        )
        with torch.autocast("cuda", enabled=False):
            self.replay = capture(record, self.stream)

    @property
    def busy(self) -> bool:
        """Whether the backward pass of the last call is still to come."""
        pending = self.pending()
        return pending is not None and not pending.done

    def __call__(self, leaves: list[Tensor], parameters: Sequence[Tensor]) -> Any:
        result: Sequence[Tensor] = self.replay(*leaves, *parameters)
        node = next((x.grad_fn for x in result if x.grad_fn is not None), None)
        if node is not None:
            pending = _Pending()
            node.register_prehook(pending.finish)  # which keeps it as long as the node lives
            self.pending = weakref.ref(pending)
        else:  # nothing tells how long they are read, and the next call overwrites them
            result = [x.clone() for x in result]
        # All that a node returns seems to need a gradient.
        pairs = zip(result, self.differentiable, strict=True)
        return self.restore([x if needs else x.detach() for x, needs in pairs])


class _ForPasses(torch.autograd.Function):
    """Parameters for some passes, on their own memory. Their gradients are added up in a few
    kernels; where each pass led to the parameters themselves, that took one for each of them.
    """

    @staticmethod
    def forward(ctx, uses: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(p.detach() for _ in range(uses) for p in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None):
        count = len(ctx.needs_input_grad) - 1
        total = list(gradients[:count])
        for use in range(count, len(gradients), count):
            pairs = list(zip(total, gradients[use : use + count], strict=True))
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            # Not in place: these lie where their graphs write.
            sums = iter(torch._foreach_add(*map(list, zip(*both, strict=True))) if both else ())
            total = [b if a is None else a if b is None else next(sums) for a, b in pairs]
        return None, *total


class _Pending:
    """A forward pass whose backward pass may still come."""

    done = False

    def finish(self, gradients: tuple[Tensor | None, ...]) -> None:
        """Called as its backward pass begins."""
        self.done = True


def _flat(output: Any) -> tuple[tuple[Tensor, ...], Callable[[list[Tensor]], Any]]:
    """The tensors of an output, and what makes an output of such tensors."""
    kind = type(output)
    if kind is ExpertOutput:
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    leaves, spec = tree_flatten(output)
    there = [isinstance(leaf, Tensor) for leaf in leaves]

    def restore(tensors: list[Tensor]) -> Any:
        given = iter(tensors)
        whole = [next(given) if is_there else None for is_there in there]
        tree = tree_unflatten(whole, spec)
        return ExpertOutput(**tree) if kind is ExpertOutput else tree

    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)), restore


def _on_gpu(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_cuda


def _looks(tensor: Tensor) -> tuple:
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

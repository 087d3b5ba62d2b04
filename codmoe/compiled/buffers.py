"""Buffers for one batch size and image size, and the pieces of work that read and write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from math import comb

import torch
from torch import Tensor, nn

from codmoe.compiled.graphs import Preparer, Work, run_beside
from codmoe.models.combiners import Combiner
from codmoe.models.dispatch import Passes, PyramidBank
from codmoe.models.layers import resize_to
from codmoe.structures import RoutingDecision

MOST_ROUTES = 32
"""Choices of experts up to which a single image's are prepared together."""


@dataclass
class Parts:
    """What the pieces of work call; see :class:`CompiledMoE`."""

    passes: Passes
    router: Callable[[Tensor, list[Tensor]], RoutingDecision]
    experts: Mapping[str, Callable]
    own: Mapping[str, nn.Module | None]
    scales: Mapping[str, tuple[float, ...]]
    combine: Callable[[Tensor, RoutingDecision], Tensor]
    combiner: Combiner
    dtype: torch.dtype
    memory_format: torch.memory_format
    overlap: bool
    top_k: int

    def cast(self, x: Tensor) -> Tensor:
        """To the precision and layout of the weights."""
        return laid_out(x, self.dtype, self.memory_format)


class Buffers:
    """Runs a model on up to ``batch`` images of one size.

    Rows beyond the images of a call hold what was there before: no part mixes images, and nobody
    reads theirs. Every expert writes its maps at full size into a plane of its own; the combiner
    picks each image's from there.

    Args:
        parts: The model's.
        prepare: Captures or compiles.
        batch: Images at a time, B.
        size: Height and width in pixels, multiples of the backbone's ``size_divisor``.
        groups: Sizes that a group of images routed to one expert is padded to, ascending.
        device: Where it runs.
    """

    def __init__(
        self,
        parts: Parts,
        prepare: Preparer,
        batch: int,
        size: tuple[int, int],
        groups: Sequence[int],
        device: torch.device,
    ):
        self.parts, self.prepare, self.batch, self.size = parts, prepare, batch, size
        self.groups = [group for group in groups if group < batch]
        self.names = list(parts.experts)
        self.images = torch.zeros(batch, 3, *size, device=device).contiguous(
            memory_format=parts.memory_format
        )
        count = len(self.names)
        # One row more: where padding of a group writes.
        planes = (count, batch + 1, *size)
        self.maps = torch.zeros(planes, device=device)
        # Rows that each expert reads and those it writes.
        self.rows = torch.zeros(count, 2, batch, dtype=torch.long, device=device)
        self.host_rows = torch.zeros_like(self.rows, device="cpu")
        if device.type == "cuda":
            self.host_rows = self.host_rows.pin_memory()
        self.every_row = torch.arange(batch, device=device)[:, None]
        self.begun: list[Tensor] = []
        self.pyramid: list[Tensor] = []
        self.decision: RoutingDecision | None = None
        self.mixed: dict[tuple[int, bool], Tensor] = {}
        self.forced: dict[int, RoutingDecision] = {}
        self.forced_to: dict[int, tuple[str, ...]] = {}
        self.pieces: dict[tuple, Work] = {}
        # One image does not fill a GPU: its experts are one piece, side by side.
        routes = comb(len(self.names), parts.top_k)
        self.joined = batch == 1 and parts.overlap and routes <= MOST_ROUTES

    def start(self, images: Tensor) -> None:
        """Backbone and router of n ≤ B normalised images, (n, 3, H, W)."""
        self.images[: len(images)].copy_(images)
        self._piece("backbone", self._backbone)
        self._piece("router", self._router)

    def finish(
        self, count: int, *, dense: bool = False, names: Sequence[str] | None = None
    ) -> tuple[Tensor, RoutingDecision]:
        """Experts and combiner of the ``count`` images that :meth:`start` was given.

        Args:
            count: Number of images, n.
            dense: Run every expert on all of them; the mixture does not change.
            names: Experts that every image takes, with equal weights, in place of the router's
                choice (which is waited for all the same).

        Returns:
            Logits (n, 1, H, W) and decision (n, ·), views of buffers that the next call overwrites.
        """
        decision = self._decided()
        chosen: Mapping[int, list[int] | None] = dict.fromkeys(range(len(self.names)))
        if names is not None or not (dense or decision.indices.shape[1] == len(self.names)):
            # The one wait for the device: here the host learns which experts to launch.
            choice = decision.indices[:count].tolist()
            if names is not None:
                decision = self._force(names)
                choice = [[self.names.index(name) for name in names]] * count
            if not dense:
                chosen = _by_expert(choice)
        self._launch(chosen)
        key = (decision.indices.shape[1], names is not None)
        self._piece("combiner", lambda: self._combine(decision, key), *key)
        return self.mixed[key][:count], _first(decision, count)

    def prepare_groups(self, count: int) -> None:
        """Prepare every expert for groups of up to ``count`` images; as it is, nothing needs to."""
        if self.prepare.eager:
            return
        if self.joined:
            for route in combinations(range(len(self.names)), self.parts.top_k):
                self._launch(dict.fromkeys(route))
            return
        for group in [group for group in self.groups if group < count] + [count]:
            self._launch({expert: list(range(group)) for expert in range(len(self.names))})

    def _piece(self, part: str, work: Work, *sizes: int | bool) -> None:
        """Runs a piece, which is prepared (and so run) when it is first asked for."""
        key = (part, *sizes)
        if key in self.pieces:
            self.pieces[key]()
            return
        at = f"{part}, {self.batch} × {self.size[0]} × {self.size[1]}"
        if part in self.parts.experts and sizes:
            at += f", group of {sizes[0]}"
        self.pieces[key] = self.prepare(at, work)

    def _backbone(self) -> None:
        begun = self.parts.passes.begin(self.images)
        self.pyramid = _stored(self.pyramid or None, self.parts.passes.end(begun))
        if any(own is not None for own in self.parts.own.values()):
            self.begun = _stored(self.begun or None, begun)

    def _router(self) -> None:
        made = self.parts.router(self.images, self.pyramid)
        self.decision = _kept(self.decision, made)

    def _decided(self) -> RoutingDecision:
        if self.decision is None:
            raise RuntimeError("finish() before start()")
        return self.decision

    def _force(self, names: Sequence[str]) -> RoutingDecision:
        """The decision with these experts; written where the last one of as many had others, so
        that the route costs what it costs as a router's choice.
        """
        decided, k = self._decided(), len(names)
        if self.forced_to.get(k) != tuple(names):
            made = _kept(self.forced.get(k), decided.forced(names))
            # The router writes these two anew.
            self.forced[k] = replace(
                made, logits=decided.logits, probabilities=decided.probabilities
            )
            self.forced_to[k] = tuple(names)
        return self.forced[k]

    def _launch(self, chosen: Mapping[int, list[int] | None]) -> None:
        """Run each expert on its rows; None stands for the whole batch, in order."""
        if self.prepare.eager:
            self._launch_as_it_is(chosen)
            return
        padded = {}
        for expert, rows in chosen.items():
            fitting = [group for group in self.groups if rows is not None and group >= len(rows)]
            padded[expert] = min(fitting, default=self.batch)
        if any(group < self.batch for group in padded.values()):
            # As one table, since the device idles until it has it.
            table = [[[0], [self.batch]]] * len(self.names)
            for expert, rows in chosen.items():
                taken = rows or []
                table[expert] = [taken + taken[:1], [*taken, self.batch]]
            wide = self.batch
            table = [[(row + row[-1:] * wide)[:wide] for row in pair] for pair in table]
            # Nobody still reads the host's copy: since the last one the device was waited for.
            self.host_rows.copy_(torch.tensor(table))
            self.rows.copy_(self.host_rows, non_blocking=True)
        if self.joined:
            route = list(padded)
            names = [self.names[expert] for expert in route]
            self._piece(" + ".join(names), lambda: self._side_by_side(route))
            return
        for expert, group in padded.items():
            name = self.names[expert]
            self._piece(name, partial(self._expert, expert, group), group)

    def _launch_as_it_is(self, chosen: Mapping[int, list[int] | None]) -> None:
        """Without padding. A scale that several of the experts read is made once."""
        parts, every = self.parts, list(range(self.batch))
        rows: dict[str, Tensor | None] = {
            self.names[expert]: None
            if taken in (None, every)
            else torch.tensor(taken, device=self.images.device)
            for expert, taken in chosen.items()
        }
        bank = PyramidBank(self.images, parts.passes, self.begun or None, self.pyramid)
        bank.share(parts.scales, rows)
        for name, index in rows.items():
            images = self.images if index is None else self.images[index]
            pyramids = [bank.get(scale, index, parts.own[name]) for scale in parts.scales[name]]
            pyramids = [[parts.cast(level) for level in pyramid] for pyramid in pyramids]
            self._predict(name, images, pyramids, slice(0, self.batch) if index is None else index)

    def _side_by_side(self, route: Sequence[int]) -> None:
        works = [partial(self._expert, expert, self.batch) for expert in route]
        run_beside(works, self.prepare.streams("route", len(works) - 1))

    def _expert(self, expert: int, group: int) -> None:
        parts, name = self.parts, self.names[expert]
        own, images = parts.own[name], self.images
        known = self.pyramid if own is None else self.begun
        target: Tensor | slice = slice(0, self.batch)
        if group < self.batch:
            source, target = self.rows[expert, 0, :group], self.rows[expert, 1, :group]
            images = images[source]
            if 1.0 in parts.scales[name]:
                known = [parts.cast(level[source]) for level in known]
        begun, pyramid = (None, known) if own is None else (known, None)
        bank = PyramidBank(images, parts.passes, begun, pyramid)
        pyramids: dict[float, list[Tensor]] = {scale: [] for scale in parts.scales[name]}

        def fill(scale: float) -> None:
            pyramids[scale] = bank.get(scale, None, own)

        further = [partial(fill, scale) for scale in pyramids if scale != 1.0]
        streams = self.prepare.streams(name, len(further) - 1) if parts.overlap else []
        run_beside(further, streams)
        if 1.0 in pyramids:
            fill(1.0)
        self._predict(name, images, list(pyramids.values()), target)

    def _predict(
        self, name: str, images: Tensor, pyramids: list[list[Tensor]], target: Tensor | slice
    ) -> None:
        output = self.parts.experts[name](self.parts.cast(images), pyramids)
        full = resize_to(output.logits.float(), self.size)[:, 0]
        self.maps[self.names.index(name)][target] = full

    def _combine(self, decision: RoutingDecision, key: tuple[int, bool]) -> None:
        mixed = self.parts.combine(self.maps[decision.indices, self.every_row], decision)
        mixed = self.parts.combiner.calibrated(mixed)
        old = [self.mixed[key]] if key in self.mixed else None
        self.mixed[key] = _stored(old, [mixed])[0]


def laid_out(x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """In a precision and, if these are maps, a layout."""
    return x.to(dtype).contiguous(
        memory_format=memory_format if x.ndim == 4 else torch.contiguous_format
    )


def reads_whole_maps(combiner: Combiner) -> bool:
    """Whether a combiner only has a :meth:`Combiner.combine` of its own, as ours have."""
    return type(combiner).forward is Combiner.forward


def _by_expert(choice: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, picked in enumerate(choice):
        for expert in picked:
            rows.setdefault(expert, []).append(row)
    return dict(sorted(rows.items()))


def _stored(buffers: Sequence[Tensor] | None, values: Sequence[Tensor]) -> list[Tensor]:
    """Copies values into buffers, which are made like the values the first time."""
    if buffers is None:
        return [value.clone() for value in values]
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
    return list(buffers)


def tensors_of_decision(decision: RoutingDecision) -> list[Tensor]:
    """Logits, probabilities, indices and weights, as :func:`decision_of` takes them."""
    return [decision.logits, decision.probabilities, decision.indices, decision.weights]


def decision_of(tensors: Sequence[Tensor], names: tuple[str, ...]) -> RoutingDecision:
    """A decision of its tensors and the names of the experts."""
    logits, probabilities, indices, weights = tensors
    return RoutingDecision(logits, probabilities, indices, weights, names)


def _kept(old: RoutingDecision | None, new: RoutingDecision) -> RoutingDecision:
    """``new`` in the tensors of ``old``."""
    stored = _stored(None if old is None else tensors_of_decision(old), tensors_of_decision(new))
    return decision_of(stored, new.expert_names)


def _first(decision: RoutingDecision, count: int) -> RoutingDecision:
    fields = [field[:count] for field in tensors_of_decision(decision)]
    return decision_of(fields, decision.expert_names)

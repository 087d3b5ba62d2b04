"""The whole model prepared for evaluation: fixed shapes, captured or compiled, routing between."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codmoe.compiled.artefact import read_manifest, take_over
from codmoe.compiled.buffers import (
    Buffers,
    decision_of,
    reads_whole_maps,
    tensors_of_decision,
)
from codmoe.compiled.copies import DTYPES, PartCopies
from codmoe.compiled.graphs import Piece, Preparer, reason_of, settle_backend
from codmoe.compiled.kept_parts import KeptParts
from codmoe.messages import note, suggest
from codmoe.models.dispatch import padded_to
from codmoe.models.moe import ModelLevelMoE
from codmoe.structures import ExpertOutput, RoutingDecision

BATCHES = (1, 2, 4, 8, 16)
GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


class CompiledMoE:
    """Evaluates a model in pieces that are prepared once: ``prepared(images)`` → logits.

    Backbone, router, every expert (with the backbone passes at its further image scales) and the
    combiner are pieces of fixed shapes. Between router and experts the host reads the choice, its
    one wait in a batch, and launches the chosen experts alone, each on its images, padded to the
    next of ``groups``. A piece is prepared when it is first needed, which takes seconds;
    :meth:`warm_up` does it beforehand. What cannot be captured or compiled runs eagerly, and
    :attr:`pieces` says why.

    Backbone and experts hold their weights in ``dtype``, router and combiner in float32, but for
    the router's convolutions, which are computed in ``dtype``; batch norm is folded into
    convolutions. With 16 bits on a GPU the router's other products are taken in TF32: on PVT-v2-B2
    that moved its results by at most 0.003 of their standard deviation, where another order of
    operations in bf16 moves the backbone's by 0.06. Weights are copies: they follow the model's
    when these are written (load_state_dict, an optimiser's step; not what is written through
    ``.data``: then call :meth:`refresh`). ``"eager"`` follows other changes, too: where parts,
    submodules, attributes or ``top_k`` were replaced the model is copied anew, and one whose
    modules have hooks runs as it is. Threads wait for each other; use one CUDA stream.

    Args:
        model: The model; it is left as it is.
        dtype: ``"bf16"``, ``"fp16"``, ``"fp32"``. ``"auto"``: on a GPU bf16 where it has it, else
            fp16; fp32 on the CPU.
        backend: ``"cudagraph"`` captures eager code, ``"inductor"`` compiles and, on a GPU,
            captures; ``"eager"`` does neither. ``"auto"``: cudagraph on a GPU, eager on the CPU.
        batches: Batch sizes that are prepared; others are padded, larger ones cut. ``"eager"`` pads
            nothing, and knows the largest alone. The artefact's, or 1, 2, 4, 8, 16.
        groups: Sizes of groups that are prepared; the batch size itself always is. The artefact's,
            or a dozen.
        memory_format: ``"channels_last"`` or ``"contiguous"``. The artefact's, or the first.
        max_sizes: Image sizes that are prepared. Images of further ones run through the model.
            ``"eager"`` takes any, and keeps buffers of the last alone.
        overlap: On a GPU, work that does not depend on each other runs on streams side by side: the
            experts of a single image, and the image scales of one expert.
        artefact: Folder of ``codmoe export --format compiled``, which holds what was compiled
            before, in its precision and layout. If it does not fit, or is not this user's,
            :attr:`reason` says why, and pieces are compiled here.

    Raises:
        FileNotFoundError: The artefact is not there.
        ValueError: An argument is unknown.
    """

    def __init__(
        self,
        model: ModelLevelMoE,
        *,
        dtype: str = "auto",
        backend: str = "auto",
        batches: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        memory_format: str | None = None,
        max_sizes: int = 4,
        overlap: bool = True,
        artefact: str | Path | None = None,
    ):
        if artefact is not None:
            made, _ = read_manifest(artefact)
            batches = made["batches"] if batches is None else batches
            groups = made["groups"] if groups is None else groups
            dtype = made["made"]["precision"] if dtype == "auto" else dtype
            memory_format = memory_format or made["made"]["layout"]
            if backend not in ("auto", "inductor"):
                raise ValueError(f"backend={backend!r} reads no artefact; leave one of both out")
            backend = "inductor"
        batches = BATCHES if batches is None else batches
        groups = GROUPS if groups is None else groups
        memory_format = memory_format or "channels_last"
        if not batches or min(*batches, *groups, 1) < 1:
            raise ValueError(f"batches={batches}, groups={groups}: give sizes of 1 or more")
        self.model, self.max_sizes = model, max_sizes
        self.lock = threading.RLock()
        self.device = next(model.parameters()).device
        self.backend, self.reason = settle_backend(backend, self.device)
        fused = self.backend == "inductor" and self.device.type == "cuda"
        self.copies = PartCopies(model, dtype, memory_format, fused=fused)
        if artefact is not None and (refused := take_over(artefact, self.copies)):
            self.reason, artefact = refused, None
            note(refused)
        keep = KeptParts(self.copies, artefact).find if self.backend == "inductor" else None
        self.prepare = Preparer(self.device, self.backend, keep)
        if self.prepare.backend == "eager":  # padding takes as long as images
            batches = groups = range(1, max(batches) + 1)
        self.batches, self.groups = sorted(set(batches)), sorted(set(groups))
        self.buffers: dict[tuple[int, int, int], Buffers] = {}
        self.overlap = overlap
        self.follows = self.prepare.backend == "eager"
        self.parts = self.copies.parts(self.prepare, overlap)
        self.unusable = self._unusable()

    def _unusable(self) -> str:
        """Why the model runs as it is; empty if it does not."""
        combiner = self.model.combiner
        if not reads_whole_maps(combiner):
            return (
                f"{type(combiner).__name__} has a forward of its own, and reads more than maps at "
                "full size: the model runs as it is"
            )
        if self.follows and self.copies.hooked:
            return "modules of the model have hooks, which copies do not call: it runs as it is"
        return ""

    def _follow(self) -> None:
        """Copy the model anew. Nothing that took time is lost where nothing was compiled."""
        self.copies.accept()
        self.device = self.copies.device
        self.unusable = self._unusable()
        if self.unusable:
            return
        try:
            self.copies = PartCopies(self.model, self.copies.dtype, self.copies.memory_format)
        except Exception as error:  # whatever a module cannot be copied for
            self.follows = False
            self.unusable = f"the model cannot be copied ({reason_of(error)}) and runs as it is"
            return
        self.parts = self.copies.parts(self.prepare, self.overlap)
        self.buffers.clear()

    @property
    def pieces(self) -> list[Piece]:
        """What was prepared so far, and how it runs."""
        return self.prepare.pieces

    @property
    def report(self) -> str:
        """How it runs, and what does not run as it was asked to; one line each."""
        hows = [piece.how for piece in self.pieces]
        counts = ", ".join(f"{hows.count(how)} × {how}" for how in dict.fromkeys(hows))
        seconds = sum(piece.seconds for piece in self.pieces)
        lines = [
            f"prepared model: {self.backend}, {self.copies.dtype}, {self.copies.memory_format}, "
            f"{self.device}; pieces: {counts or 'none yet'}, prepared in {seconds:.1f} s"
        ]
        lines += filter(None, [self.reason, self.unusable])
        return "\n".join(lines + [str(piece) for piece in self.pieces if piece.reason])

    def __call__(self, images: Tensor, *, names: Sequence[str] | None = None) -> Tensor:
        """Normalised images (N, 3, H, W) → logits (N, 1, H, W), float32; see :meth:`mixture`."""
        return self.mixture(images, names=names)[0]

    def mixture(
        self, images: Tensor, *, dense: bool = False, names: Sequence[str] | None = None
    ) -> tuple[Tensor, RoutingDecision, dict[str, ExpertOutput]]:
        """Like :meth:`ModelLevelMoE.mixture`, without gradients.

        Args:
            images: Normalised images, (N, 3, H, W), on the device of the model.
            dense: Run every expert on every image. Their maps are returned in the size of the
                images, padded to a multiple of the backbone's ``size_divisor``.
            names: These experts on every image, with equal weights, instead of the router's
                choice; for measurements.

        Returns:
            Logits (N, 1, H, W), decision, and outputs of the experts where ``dense``, else none.

        Raises:
            ValueError: The images are none, lie elsewhere, or parts of the model were replaced.
        """
        with self.lock:
            if self.follows and self.copies.changed():
                self._follow()
            self._check(images, names)
            return self._mixture(images, dense, names)

    def _mixture(
        self, images: Tensor, dense: bool, names: Sequence[str] | None
    ) -> tuple[Tensor, RoutingDecision, dict[str, ExpertOutput]]:
        height, width = images.shape[-2:]
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            padded = padded_to(images, self.model.backbone.size_divisor)
            if not self._prepares(padded):
                return self._as_it_is(images, dense, names)
            results = []
            for chunk in padded.split(self.batches[-1]):
                buffers = self._buffers_for(chunk)
                buffers.start(chunk)
                # While the device is at work, which hides what looking costs.
                if self.copies.watch.changed():
                    self.refresh()
                    buffers.start(chunk)
                logits, decision = buffers.finish(len(chunk), dense=dense, names=names)
                maps = buffers.maps[:, : len(chunk)].transpose(0, 1) if dense else logits[:, :0]
                results.append(_clones([*tensors_of_decision(decision), logits, maps]))
        with torch.no_grad():
            whole = results[0]
            if len(results) > 1:
                whole = [torch.cat(pieces) for pieces in zip(*results, strict=True)]
            *fields, logits, maps = whole
            experts = self.model.expert_names if dense else ()
            outputs = {n: ExpertOutput(logits=maps[:, i : i + 1]) for i, n in enumerate(experts)}
            decision = decision_of(fields, decision.expert_names)
            return logits[..., :height, :width], decision, outputs

    def warm_up(
        self,
        batches: Sequence[int] | None = None,
        size: int | tuple[int, int] = 448,
        *,
        routes: Sequence[Sequence[str]] = (),
    ) -> CompiledMoE:
        """Prepare all pieces for these numbers of images (default: ``batches``) of one size.

        Args:
            batches: Numbers of images.
            size: Side, or height and width, in pixels.
            routes: Experts to prepare also as ``names`` of :meth:`mixture`.
        """
        height, width = (size, size) if isinstance(size, int) else size
        for count in batches or self.batches:
            images = torch.zeros(count, 3, height, width, device=self.device)
            self.mixture(images)
            for route in routes:
                self.mixture(images, names=route)
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                padded = padded_to(images, self.model.backbone.size_divisor)
                if self._prepares(padded):
                    self._buffers_for(padded).prepare_groups(count)
        return self

    def refresh(self) -> None:
        """Take over the model's weights as they are now; nothing has to be prepared anew."""
        self.copies.refresh()

    def attach(self) -> CompiledMoE:
        """Have the model evaluate through this (``predict``, ``forward``) where it records
        no gradients; :meth:`detach` ends it.
        """
        self.model.run_state.prepared = self
        return self

    def detach(self) -> None:
        """Have the model run by itself again."""
        self.model.run_state.prepared = None

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of the model is not prepared."""

    def __reduce__(self):
        """Nor is a pickled one."""
        return type(None), ()

    def _prepares(self, padded: Tensor) -> bool:
        size = tuple(padded.shape[-2:])
        known = {key[1:] for key in self.buffers}
        return not self.unusable and (self.follows or size in known or len(known) < self.max_sizes)

    def _buffers_for(self, images: Tensor) -> Buffers:
        batch = next(batch for batch in self.batches if batch >= len(images))
        key = (batch, *images.shape[-2:])
        if key not in self.buffers:
            if self.follows:  # nothing in them took time, and they are as large as a step
                self.buffers.clear()
            self.buffers[key] = Buffers(
                self.parts, self.prepare, batch, key[1:], self.groups, self.device
            )
        return self.buffers[key]

    def _as_it_is(self, images: Tensor, dense: bool, names: Sequence[str] | None):
        if names is not None:
            raise ValueError(f"names={names} needs pieces that are prepared: {self.report}")
        model, state, training = self.model, self.model.run_state, self.model.training
        attached, dtype = state.prepared, DTYPES[self.copies.dtype]
        state.prepared = None
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                return model.eval().mixture(images, dense=dense)
        finally:
            state.prepared = attached
            model.train(training)

    def _check(self, images: Tensor, names: Sequence[str] | None) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"images of shape {tuple(images.shape)} are not (N, 3, H, W), N ≥ 1")
        if images.device.type != self.device.type:
            raise ValueError(f"images on {images.device}, the model on {self.device}: move them")
        if not self.unusable:
            self.copies.check()
        for name in names or ():
            if name not in self.model.experts:
                raise ValueError(f"names: no expert {name!r}; {suggest(name, self.model.experts)}")


def attach_prepared(
    model: ModelLevelMoE,
    compile: bool | str | Mapping[str, Any] = True,
    batch_size: int | None = None,
) -> CompiledMoE:
    """Prepare a model and have it evaluate through what was prepared.

    Args:
        model: The model, where it is to run.
        compile: True, a backend, or a dict of arguments of :class:`CompiledMoE`.
        batch_size: Most images that will come at a time, if that is known.

    Raises:
        ValueError: ``compile`` is none of these, or names an argument that is not there.
    """
    options = dict(backend=compile) if isinstance(compile, str) else compile
    options = {} if options is True else options
    if not isinstance(options, Mapping):
        raise ValueError(
            f"compile={compile!r}: give True, a backend such as 'cudagraph', or a dict"
        )
    known = list(inspect.signature(CompiledMoE).parameters)[1:]
    for key in options:
        if key not in known:
            raise ValueError(f"compile: no key {key!r}; {suggest(key, known)}")
    if batch_size is not None and options.get("artefact") is None:
        smaller = [batch for batch in BATCHES if batch < batch_size]
        options = {"batches": (*smaller, batch_size), **options}
    return CompiledMoE(model, **options).attach()


def _clones(fields: Sequence[Tensor]) -> list[Tensor]:
    """Ordinary tensors of their own: the buffers are written again in the next batch."""
    with torch.inference_mode(False), torch.no_grad():
        return [field.clone() for field in fields]

"""The whole model prepared for evaluation: fixed shapes, captured or compiled, routing between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from codmoe.engine.speed import FORMATS
from codmoe.inference.folding import ChangeWatch, frozen_copy, overwrite
from codmoe.inference.graphs import Piece, Preparer, settle_backend
from codmoe.inference.lanes import Lane, Parts, runs_in_lanes
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import suggest
from codmoe.structures import ExpertOutput, RoutingDecision

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
BATCHES = (1, 2, 4, 8, 16)
GROUPS = (1, 2, 3, 4, 6, 8, 12)


class CompiledMoE:
    """Evaluates a model in pieces that are prepared once: ``engine(images)`` → logits.

    Backbone, router, every expert (with the backbone passes at its further image scales) and the
    combiner are pieces of fixed shapes. Between router and experts the host reads the choice, its
    one wait in a batch, and launches the chosen experts alone, each on its images, padded to the
    next of ``groups``. A piece is prepared when it is first needed, which takes seconds;
    :meth:`warm_up` does it beforehand. What cannot be captured or compiled runs eagerly, and
    :attr:`pieces` says why.

    Backbone and experts hold their weights in ``dtype``, router and combiner in float32; batch norm
    is folded into convolutions. Weights are copies: they follow the model's when these are written
    (load_state_dict, an optimiser's step; not what is written through ``.data``: then call
    :meth:`refresh`). Use it from one thread and one CUDA stream.

    Args:
        model: The model; it is left as it is.
        dtype: ``"bf16"``, ``"fp16"``, ``"fp32"``. ``"auto"``: on a GPU bf16 where it has it, else
            fp16; fp32 on the CPU.
        backend: ``"cudagraph"`` captures eager code, ``"inductor"`` compiles and, on a GPU,
            captures; ``"eager"`` does neither. ``"auto"``: cudagraph on a GPU, eager on the CPU.
        batches: Batch sizes that are prepared; others are padded, larger ones cut.
        groups: Sizes of groups that are prepared; the batch size itself always is.
        memory_format: ``"channels_last"`` or ``"contiguous"``. ``"auto"``: channels_last on a GPU.
        max_sizes: Image sizes that are prepared. Images of further ones run through the model.

    Raises:
        ValueError: An argument is unknown.
    """

    def __init__(
        self,
        model: ModelLevelMoE,
        *,
        dtype: str = "auto",
        backend: str = "auto",
        batches: Sequence[int] = BATCHES,
        groups: Sequence[int] = GROUPS,
        memory_format: str = "auto",
        max_sizes: int = 4,
    ):
        if not batches or min(*batches, *groups, 1) < 1:
            raise ValueError(f"batches={batches}, groups={groups}: give sizes of 1 or more")
        self.model, self.max_sizes = model, max_sizes
        self.device = next(model.parameters()).device
        gpu = self.device.type == "cuda"
        if dtype == "auto":
            dtype = ("bf16" if torch.cuda.is_bf16_supported(False) else "fp16") if gpu else "fp32"
        if memory_format == "auto":
            memory_format = "channels_last" if gpu else "contiguous"
        for key, value, known in (
            ("dtype", dtype, DTYPES),
            ("memory_format", memory_format, FORMATS),
        ):
            if value not in known:
                raise ValueError(f"{key}={value!r} is unknown; {suggest(str(value), known)}")
        self.dtype, self.memory_format = dtype, memory_format
        self.backend, self.reason = settle_backend(backend, self.device)
        self.usable = runs_in_lanes(model.combiner)
        if not self.usable:
            self.reason = (
                f"{type(model.combiner).__name__} has a forward of its own, and reads more than "
                "maps at full size: the model runs as it is"
            )
        self.batches, self.groups = sorted(set(batches)), sorted(set(groups))
        self.prepare = Preparer(self.device, self.backend)
        self.lanes: dict[tuple[int, int, int], Lane] = {}
        self._copy()

    @property
    def pieces(self) -> list[Piece]:
        """What was prepared so far, and how it runs."""
        return self.prepare.pieces

    @property
    def report(self) -> str:
        """How the engine runs, and what does not run as it was asked to; one line each."""
        hows = [piece.how for piece in self.pieces]
        counts = ", ".join(f"{hows.count(how)} × {how}" for how in dict.fromkeys(hows))
        seconds = sum(piece.seconds for piece in self.pieces)
        lines = [
            f"engine: {self.backend}, {self.dtype}, {self.memory_format}, {self.device}; pieces: "
            f"{counts or 'none yet'}, prepared in {seconds:.1f} s"
        ]
        lines += [self.reason] if self.reason else []
        return "\n".join(lines + [str(piece) for piece in self.pieces if piece.reason])

    def __call__(self, images: Tensor, *, names: Sequence[str] | None = None) -> Tensor:
        """Normalised images (N, 3, H, W) → logits (N, 1, H, W), float32; see :meth:`mixture`."""
        return self.mixture(images, names=names)[0]

    def mixture(
        self, images: Tensor, *, dense: bool = False, names: Sequence[str] | None = None
    ) -> tuple[Tensor, RoutingDecision, dict[str, ExpertOutput]]:
        """Like :meth:`ModelLevelMoE.mixture`, without gradients.

        Args:
            images: Normalised images, (N, 3, H, W), on the engine's device.
            dense: Run every expert on every image. Their maps are returned in full size.
            names: These experts on every image, with equal weights, instead of the router's
                choice; for measurements.

        Returns:
            Logits (N, 1, H, W), decision, and outputs of the experts where ``dense``, else none.

        Raises:
            ValueError: The images are none, lie elsewhere, or parts of the model were replaced.
        """
        self._check(images, names)
        height, width = images.shape[-2:]
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            padded = self.model._padded(images)
            if not self._prepares(padded):
                return self._as_it_is(images, dense, names)
            results = []
            for chunk in padded.split(self.batches[-1]):
                lane = self._lane(chunk)
                lane.start(chunk)
                # While the device is at work, which hides what looking costs.
                if self.watch.changed():
                    self.refresh()
                    lane.start(chunk)
                logits, decision = lane.finish(len(chunk), dense=dense, names=names)
                maps = lane.maps[:, : len(chunk)].transpose(0, 1) if dense else logits[:, :0]
                fields = (decision.logits, decision.probabilities)
                fields += (decision.indices, decision.weights, logits, maps)
                results.append(_clones(fields))
        with torch.no_grad():
            *fields, logits, maps = (torch.cat(pieces) for pieces in zip(*results, strict=True))
            cut = (..., slice(height), slice(width))
            outputs = {
                name: ExpertOutput(logits=maps[:, i : i + 1][cut])
                for i, name in enumerate(self.model.experts if dense else ())
            }
            return logits[cut], RoutingDecision(*fields, decision.expert_names), outputs

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
            images = torch.randn(count, 3, height, width, device=self.device)
            self.mixture(images)
            for route in routes:
                self.mixture(images, names=route)
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                padded = self.model._padded(images)
                if self._prepares(padded):
                    self._lane(padded).prepare_groups(count)
        return self

    def refresh(self) -> None:
        """Take over the model's weights as they are now; nothing has to be prepared anew."""
        for name, part in self.sources.items():
            overwrite(self.copies[name], frozen_copy(part, **self._form(name)))
        self.watch.changed()

    def attach(self) -> CompiledMoE:
        """Have the model evaluate through this engine (``predict``, ``forward``) where it records
        no gradients; :meth:`detach` ends it.
        """
        self.model.engine = self
        return self

    def detach(self) -> None:
        """Have the model run by itself again."""
        self.model.engine = None

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of the model has no engine."""

    def _form(self, name: str) -> dict[str, Any]:
        exact = name in ("router", "combiner")
        dtype = torch.float32 if exact else DTYPES[self.dtype]
        return dict(dtype=dtype, device=self.device, memory_format=FORMATS[self.memory_format])

    def _copy(self) -> None:
        model = self.model
        self.sources = _parts_of(model)
        self.copies = {n: frozen_copy(part, **self._form(n)) for n, part in self.sources.items()}
        self.watch = ChangeWatch(*self.sources.values())
        compiled = {name: self.prepare.compiled(name, part) for name, part in self.copies.items()}
        combiner = self.copies["combiner"]
        for expert in model.experts:
            self.copies[f"experts.{expert}"].gives_confidence = combiner.reads_confidence
        self.parts = Parts(
            backbone=compiled["backbone"],
            router=compiled["router"],
            experts={name: compiled[f"experts.{name}"] for name in model.experts},
            scales={name: tuple(e.input_scales) for name, e in model.experts.items()},
            combine=self.prepare.compiled("combiner", combiner.combine),
            combiner=combiner,
            size_divisor=model.backbone.size_divisor,
            dtype=DTYPES[self.dtype],
            memory_format=FORMATS[self.memory_format],
        )

    def _prepares(self, padded: Tensor) -> bool:
        size = tuple(padded.shape[-2:])
        known = {lane[1:] for lane in self.lanes}
        return self.usable and (size in known or len(known) < self.max_sizes)

    def _lane(self, images: Tensor) -> Lane:
        batch = next(batch for batch in self.batches if batch >= len(images))
        key = (batch, *images.shape[-2:])
        if key not in self.lanes:
            self.lanes[key] = Lane(
                self.parts, self.prepare, batch, key[1:], self.groups, self.device
            )
        return self.lanes[key]

    def _as_it_is(self, images: Tensor, dense: bool, names: Sequence[str] | None):
        if names is not None:
            raise ValueError(f"names={names} needs the engine's own pieces: {self.report}")
        model, engine, training = self.model, self.model.engine, self.model.training
        dtype = DTYPES[self.dtype]
        model.engine = None
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                return model.eval().mixture(images, dense=dense)
        finally:
            model.engine = engine
            model.train(training)

    def _check(self, images: Tensor, names: Sequence[str] | None) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"images of shape {tuple(images.shape)} are not (N, 3, H, W), N ≥ 1")
        if images.device.type != self.device.type:
            raise ValueError(f"images on {images.device}, the engine on {self.device}: move them")
        parts = _parts_of(self.model)
        if parts.keys() != self.sources.keys() or any(
            part is not self.sources[name] for name, part in parts.items()
        ):
            raise ValueError(
                "parts of the model were replaced since the engine was built; build another one"
            )
        for name in names or ():
            if name not in self.model.experts:
                raise ValueError(f"names: no expert {name!r}; {suggest(name, self.model.experts)}")


def build_engine(model: ModelLevelMoE, **options: Any) -> CompiledMoE:
    """Images → logits of a model, prepared; ``options`` are those of :class:`CompiledMoE`."""
    return CompiledMoE(model, **options)


def _parts_of(model: ModelLevelMoE) -> dict[str, nn.Module]:
    experts = {f"experts.{name}": expert for name, expert in model.experts.items()}
    return dict(backbone=model.backbone, router=model.router, combiner=model.combiner, **experts)


def _clones(fields: Sequence[Tensor]) -> list[Tensor]:
    """Ordinary tensors of their own: the buffers are written again in the next batch."""
    with torch.inference_mode(False), torch.no_grad():
        return [field.clone() for field in fields]

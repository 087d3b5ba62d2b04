"""Runs the chosen experts on the images routed to them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codmoe.models.backbones.base import Backbone, checked_pyramid
from codmoe.models.experts.base import Expert, checked
from codmoe.structures import ExpertOutput, RoutingDecision

Pyramid = list[Tensor]
Run = Callable[..., Pyramid]


def run_as_it_is(module: nn.Module, run: Run, *args) -> Pyramid:
    """``run(*args)``, a pass of ``module``."""
    return run(*args)


@dataclass
class Passes:
    """How pyramids are made: of the blocks that all experts share, and of those at the end, the
    backbone's or an expert's own.

    Args:
        begin: Images → what the shared blocks make of them.
        end: That → the backbone's pyramid.
        own: An expert's last blocks, that → its pyramid.
        check: A pyramid and its images → the pyramid; see :func:`checked_pyramid`.
        size_divisor: Sides of scaled images are rounded to multiples of this.
    """

    begin: Callable[[Tensor], list[Tensor]]
    end: Callable[[list[Tensor]], Pyramid]
    own: Callable[[nn.Module, list[Tensor]], Pyramid]
    check: Callable[[Pyramid, Tensor], Pyramid]
    size_divisor: int

    @classmethod
    def of(cls, backbone: Backbone, own_blocks: int = 0, run: Run = run_as_it_is) -> Passes:
        """The passes of a backbone; where no expert has blocks of its own, all of it is the end.

        Args:
            backbone: The backbone.
            own_blocks: The number of last blocks that experts have of their own.
            run: Makes a pass; see :func:`run_as_it_is`.
        """
        check = partial(checked_pyramid, backbone)

        def begin(images: Tensor) -> list[Tensor]:
            return run(backbone, backbone.begin, images, own_blocks) if own_blocks else [images]

        def end(begun: list[Tensor]) -> Pyramid:
            if not own_blocks:
                return check(run(backbone, backbone, begun[0]), begun[0])
            ending = backbone.ending(own_blocks)
            return run(ending, ending, begun)

        def own(ending: nn.Module, begun: list[Tensor]) -> Pyramid:
            return run(ending, ending, begun)

        return cls(begin, end, own, check, backbone.size_divisor)


class PyramidBank:
    """The pyramids of one batch at any image scale, each made when it is first asked for.

    Args:
        images: Normalised images, (N, 3, H, W).
        passes: Makes them.
        begun: What the shared blocks made of the images at scale 1, if that is known.
        pyramid: The backbone's pyramid at scale 1, if that is known.
        further: Makes those at other scales than 1; by default ``passes`` does.
    """

    def __init__(
        self,
        images: Tensor,
        passes: Passes,
        begun: list[Tensor] | None = None,
        pyramid: Pyramid | None = None,
        further: Passes | None = None,
    ):
        self.images = images
        self.passes = passes
        self.further = further or passes
        self._begun = {} if begun is None else {1.0: begun}
        self._pyramids = {} if pyramid is None else {1.0: pyramid}
        # Of a scale that several experts read: the rows that any of them reads (None for all) and,
        # for each row of the batch, its place among these. Everybody reads scale 1.
        self._joint: dict[float, tuple[Tensor | None, Tensor | None]] = {1.0: (None, None)}

    def share(
        self, scales: Mapping[str, Sequence[float]], rows: Mapping[str, Tensor | None]
    ) -> None:
        """Have a scale that several of the chosen experts read made once, for all their images.

        Args:
            scales: Scales that each expert reads.
            rows: As of :func:`run_experts`.
        """
        readers: dict[float, list[Tensor | None]] = {}
        for name, index in rows.items():
            for scale in set(scales[name]) - {1.0}:
                readers.setdefault(scale, []).append(index)
        for scale, indices in readers.items():
            if len(indices) < 2:
                continue
            read = [index for index in indices if index is not None]
            if len(read) < len(indices):
                self._joint[scale] = (None, None)
                continue
            # Waits for the device once more; a backbone pass costs a hundred times that.
            union = sorted(set(torch.cat(read).tolist()))
            if len(union) == len(self.images):
                self._joint[scale] = (None, None)
                continue
            device = self.images.device
            chosen = torch.tensor(union, device=device)
            place = torch.zeros(len(self.images), dtype=torch.long, device=device)
            place[chosen] = torch.arange(len(union), device=device)
            self._joint[scale] = (chosen, place)

    def pyramids(self, expert: Expert, rows: Tensor | None) -> list[Pyramid]:
        """What an expert reads of the images ``rows``: a pyramid for each of its scales."""
        return [self.get(scale, rows, expert.backbone) for scale in expert.input_scales]

    def get(self, scale: float, rows: Tensor | None, own: nn.Module | None = None) -> Pyramid:
        """The pyramid at ``scale`` of the images ``rows`` (M,), or of all of them for None, by the
        backbone's last blocks or an expert's ``own``.
        """
        if own is not None:
            made = self._passes(scale).own(own, self.begun(scale, rows))
            # Of other scales the same blocks make it, and the images are not at hand.
            return self.passes.check(made, self.images) if scale == 1.0 else made
        if rows is not None and scale not in self._joint:
            return self._passes(scale).end(self.begun(scale, rows))
        if scale not in self._pyramids:
            chosen, _ = self._joint.get(scale, (None, None))
            self._pyramids[scale] = self._passes(scale).end(self.begun(scale, chosen))
        return self._rows(self._pyramids[scale], scale, rows)

    def begun(self, scale: float, rows: Tensor | None) -> list[Tensor]:
        """What the shared blocks make of the images ``rows`` at ``scale``."""
        if rows is not None and scale not in self._joint:
            return self._passes(scale).begin(self._scaled(self.images[rows], scale))
        if scale not in self._begun:
            chosen, _ = self._joint.get(scale, (None, None))
            images = self.images if chosen is None else self.images[chosen]
            self._begun[scale] = self._passes(scale).begin(self._scaled(images, scale))
        return self._rows(self._begun[scale], scale, rows)

    def _passes(self, scale: float) -> Passes:
        return self.passes if scale == 1.0 else self.further

    def _rows(self, maps: list[Tensor], scale: float, rows: Tensor | None) -> list[Tensor]:
        chosen, place = self._joint.get(scale, (None, None))
        if rows is None or rows is chosen:
            return maps
        return [level[rows if place is None else place[rows]] for level in maps]

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        if scale == 1.0:
            return images
        divisor = self.passes.size_divisor
        size = [max(round(side * scale / divisor), 1) * divisor for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False)


def run_experts(
    experts: Mapping[str, Expert],
    bank: PyramidBank,
    rows: Mapping[str, Tensor | None],
) -> dict[str, ExpertOutput]:
    """Run each named expert on its rows of the batch.

    Args:
        experts: All experts by name.
        bank: Images and pyramids of the batch.
        rows: Row numbers (M,) of each expert to run, or None for the whole batch; experts that are
            absent do not run.
    """
    outputs = {}
    for name, index in rows.items():
        expert = experts[name]
        images = bank.images if index is None else bank.images[index]
        output = checked(expert, expert(images, bank.pyramids(expert, index)))
        output.rows = index
        outputs[name] = output
    return outputs


def padded_to(images: Tensor, divisor: int) -> Tensor:
    """Images (N, 3, H, W) with bottom and right repeated until ``divisor`` divides both sides."""
    bottom, right = (-side % divisor for side in images.shape[-2:])
    if not (bottom or right):
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")


def run_everything(
    passes: Passes, experts: Mapping[str, Expert], images: Tensor
) -> tuple[Pyramid, dict[str, ExpertOutput]]:
    """Pyramid and the output of every expert for all images (N, 3, H, W)."""
    bank = PyramidBank(images, passes)
    return bank.get(1.0, None), run_experts(experts, bank, dict.fromkeys(experts))


def routed_rows(decision: RoutingDecision, names: Sequence[str]) -> dict[str, Tensor | None]:
    """Rows routed to each expert that anybody chose; None where that is the whole batch in order.

    Costs one wait for the device: the choice is copied to the host once, and all row numbers go
    back as one tensor.
    """
    choice = decision.indices.tolist()
    by_expert = {
        name: [row for row, chosen in enumerate(choice) if index in chosen]
        for index, name in enumerate(names)
    }
    used = {name: rows for name, rows in by_expert.items() if rows}
    flat = torch.tensor([row for rows in used.values() for row in rows], device="cpu")
    if decision.indices.is_cuda:
        flat = flat.pin_memory()
    flat = flat.to(decision.indices.device, non_blocking=True)
    pieces = flat.split([len(rows) for rows in used.values()])
    return {
        name: None if len(rows) == len(choice) else piece
        for (name, rows), piece in zip(used.items(), pieces, strict=True)
    }

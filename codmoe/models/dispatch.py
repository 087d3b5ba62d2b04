"""Runs the chosen experts on the images routed to them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codmoe.models.backbones.base import Backbone
from codmoe.models.experts.base import Expert
from codmoe.structures import ExpertOutput, RoutingDecision

Pyramid = list[Tensor]


class PyramidBank:
    """The pyramids of one batch at any image scale, each made when it is first asked for.

    Args:
        images: Normalised images, (N, 3, H, W).
        pyramid: Their pyramid at scale 1.
        backbone: Makes a pyramid of images.
        size_divisor: Sides of scaled images are rounded to multiples of this.
    """

    def __init__(
        self,
        images: Tensor,
        pyramid: Pyramid,
        backbone: Callable[[Tensor], Pyramid],
        size_divisor: int,
    ):
        self.images = images
        self.pyramid = pyramid
        self.backbone = backbone
        self.size_divisor = size_divisor
        self._made: dict[float, Pyramid] = {}
        # Of a scale that several experts read: the rows that any of them reads (None for all) and,
        # for each row of the batch, its place among these.
        self._joint: dict[float, tuple[Tensor | None, Tensor | None]] = {}

    def share(self, experts: Mapping[str, Expert], rows: Mapping[str, Tensor | None]) -> None:
        """Have a scale that several of the chosen experts read made once, for all their images.

        Args:
            experts: All experts by name.
            rows: As of :func:`run_experts`.
        """
        readers: dict[float, list[Tensor | None]] = {}
        for name, index in rows.items():
            for scale in set(experts[name].input_scales) - {1.0}:
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

    def get(self, scale: float, rows: Tensor | None) -> Pyramid:
        """The pyramid at ``scale`` of the images ``rows`` (M,), or of all of them for None."""
        if scale == 1.0:
            return self.pyramid if rows is None else [level[rows] for level in self.pyramid]
        joint = self._joint.get(scale)
        if rows is not None and joint is None:
            return self.backbone(self._scaled(self.images[rows], scale))
        chosen, place = joint or (None, None)
        if scale not in self._made:
            images = self.images if chosen is None else self.images[chosen]
            self._made[scale] = self.backbone(self._scaled(images, scale))
        pyramid = self._made[scale]
        if rows is None:
            return pyramid
        places = rows if place is None else place[rows]
        return [level[places] for level in pyramid]

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        divisor = self.size_divisor
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
        pyramids = [bank.get(scale, index) for scale in expert.input_scales]
        output = expert(images, pyramids)
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
    backbone: Backbone, experts: Mapping[str, Expert], images: Tensor
) -> tuple[Pyramid, dict[str, ExpertOutput]]:
    """Pyramid and the output of every expert for all images (N, 3, H, W)."""
    pyramid = backbone(images)
    bank = PyramidBank(images, pyramid, backbone, backbone.size_divisor)
    return pyramid, run_experts(experts, bank, dict.fromkeys(experts))


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

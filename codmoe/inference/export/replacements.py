"""Parts of the model in another, equal form where ONNX has no operator for what they compute."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codmoe.models.combiners import ProbabilityCombiner
from codmoe.models.experts.ujsc import PositionAttention
from codmoe.models.experts.zoomnet import ScaleIntegrationUnit
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers.evidence import ContextBranch, FrequencyBranch, luminance


class MatrixFrequencyBranch(FrequencyBranch):
    """The spectrum by matrix products: no complex numbers, no antialiased resize.

    Both are linear along each axis, so that one matrix on the left and one on the right do what
    ``interpolate(antialias=True)`` and ``rfft2`` do; the window is part of the second pair.
    """

    shrink_rows: Tensor
    shrink_columns: Tensor
    rows_real: Tensor
    rows_imaginary: Tensor
    columns_real: Tensor
    columns_imaginary: Tensor

    def prepare(self, height: int, width: int) -> None:
        """Makes the matrices for images of this size, which must be constants of the graph."""
        # In double precision: what is stored is then exact to float32.
        position = torch.arange(self.size, dtype=torch.float64)
        angle = -2 * torch.pi * torch.outer(position, position) / self.size
        window = torch.hann_window(self.size, periodic=False, dtype=torch.float64)
        real, imaginary = angle.cos() * window, angle.sin() * window
        half = self.size // 2 + 1
        matrices = dict(
            shrink_rows=_resize_matrix(height, self.size),
            shrink_columns=_resize_matrix(width, self.size).T,
            rows_real=real,
            rows_imaginary=imaginary,
            columns_real=real.T[:, :half],
            columns_imaginary=imaginary.T[:, :half],
        )
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.float().contiguous(), persistent=False)

    def statistics(self, images: Tensor) -> Tensor:
        """See :class:`FrequencyBranch`."""
        grey = self.shrink_rows @ luminance(images)[:, 0] @ self.shrink_columns
        grey = grey - grey.mean((1, 2), keepdim=True)
        a, b = grey @ self.columns_real, grey @ self.columns_imaginary
        real = self.rows_real @ a - self.rows_imaginary @ b
        imaginary = self.rows_real @ b + self.rows_imaginary @ a
        power = (real.square() + imaginary.square()).flatten(1)[:, self.inside]
        cells = torch.log(power + 1e-3) @ self.bins
        grid = cells.view(-1, self.directional, self.radial)
        return torch.cat([cells, grid.mean(2), grid.mean(1)], dim=1)


def _resize_matrix(old: int, new: int) -> Tensor:
    """(new, old): what an antialiased bilinear resize does to one axis."""
    eye = torch.eye(old, dtype=torch.float64)[None, None]
    size = (new, old)
    return F.interpolate(eye, size, mode="bilinear", antialias=True)[0, 0]


def pool_to(x: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """``F.adaptive_avg_pool2d`` (``kind="mean"``) or ``F.adaptive_max_pool2d`` (``"max"``).

    Both are separable, and the windows of one axis are gathered by constant positions.
    """
    for axis, new in zip((2, 3), size, strict=True):
        x = _pool_axis(x, axis, new, kind)
    return x


def _pool_axis(x: Tensor, axis: int, new: int, kind: str) -> Tensor:
    old = x.shape[axis]
    if old == new:
        return x
    if old % new == 0:
        kernel = (old // new, 1) if axis == 2 else (1, old // new)
        return F.avg_pool2d(x, kernel) if kind == "mean" else F.max_pool2d(x, kernel)
    windows = [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
    longest = max(end - start for start, end in windows)
    result = torch.empty(0)
    for step in range(longest):
        # A shorter window repeats its last position, which counts for the maximum only.
        positions = torch.tensor([min(start + step, end - 1) for start, end in windows])
        part = x.index_select(axis, positions)
        if kind == "mean":
            shares = [1 / (end - start) * (start + step < end) for start, end in windows]
            part = part * torch.tensor(shares).view((-1, 1) if axis == 2 else (-1,))
        if step == 0:
            result = part
        else:
            result = result + part if kind == "mean" else torch.maximum(result, part)
    return result


class GatheredContextBranch(ContextBranch):
    """Pools by gathering."""

    def _shrink(self, level: Tensor, size: tuple[int, int]) -> Tensor:
        return pool_to(level, size, "mean")


class GatheredScaleIntegrationUnit(ScaleIntegrationUnit):
    """Pools by gathering."""

    def _shrink(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return pool_to(x, size, "max") + pool_to(x, size, "mean")


class HeadedPositionAttention(PositionAttention):
    """The exporter takes attention with a head axis only."""

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (x.unsqueeze(1) for x in (query, key, value))
        return super()._attend(*heads).squeeze(1)


def mix_stably(maps: Tensor, log_weights: Tensor) -> Tensor:
    """:func:`mix_probabilities`, spelt out: ONNX has log-sigmoid and log-sum-exp only in forms that
    leave minus infinity where a logit is below −88.
    """

    def log_sigmoid(x: Tensor) -> Tensor:
        return x.clamp(max=0) - torch.log1p(torch.exp(-x.abs()))

    def log_sum(x: Tensor) -> Tensor:
        peak = x.amax(1, keepdim=True)
        return peak + (x - peak).exp().sum(1, keepdim=True).log()

    return log_sum(log_weights + log_sigmoid(maps)) - log_sum(log_weights + log_sigmoid(-maps))


class StableProbabilityCombiner(ProbabilityCombiner):
    """Mixes stably."""

    mix = staticmethod(mix_stably)


OTHER_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    FrequencyBranch: MatrixFrequencyBranch,
    ContextBranch: GatheredContextBranch,
    ScaleIntegrationUnit: GatheredScaleIntegrationUnit,
    PositionAttention: HeadedPositionAttention,
    ProbabilityCombiner: StableProbabilityCombiner,
}
"""Part of the model → its equal for ONNX, with the same parameters."""


def for_onnx(model: ModelLevelMoE, size: tuple[int, int]) -> ModelLevelMoE:
    """A copy on the CPU, in evaluation mode, whose parts have their other forms for images of this
    height and width.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    for part in model.modules():
        if type(part) in OTHER_FORMS:
            # Same parameters, other methods: nothing has to be built or copied.
            part.__class__ = OTHER_FORMS[type(part)]
        if isinstance(part, MatrixFrequencyBranch):
            part.prepare(*size)
    return model

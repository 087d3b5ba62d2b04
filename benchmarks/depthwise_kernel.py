"""A 3 × 3 depthwise convolution with bias and GELU in one pass, in Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows, columns and channels of a tile, and warps.
TILES = (
    (8, 8, 64, 4),
    (4, 16, 64, 4),
    (8, 16, 64, 8),
    (4, 8, 128, 4),
    (8, 8, 32, 4),
    (4, 4, 64, 2),
)


_best: dict[tuple[int, ...], tuple[int, int, int, int]] = {}


@triton.jit
def _kernel(
    x, taps, bias, y, images, height, width, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(1)
    pixel = tl.arange(0, ROWS * COLUMNS)
    row = (tile // across) * ROWS + pixel // COLUMNS
    column = (tile % across) * COLUMNS + pixel % COLUMNS
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    base = tl.program_id(2).to(tl.int64) * height * width * channels
    total = tl.zeros([ROWS * COLUMNS, CHANNELS], dtype=tl.float32)
    total += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            r, c = row + (i - 1), column + (j - 1)
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            at = base + (r * width + c)[:, None] * channels + channel[None, :]
            value = tl.load(x + at, mask=inside[:, None] & known[None, :], other=0.0)
            weight = tl.load(taps + (3 * i + j) * channels + channel, mask=known, other=0.0)
            total += value.to(tl.float32) * weight.to(tl.float32)[None, :]
    total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    here = ((row < height) & (column < width))[:, None] & known[None, :]
    at = base + (row * width + column)[:, None] * channels + channel[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=here)


def run(
    x: Tensor, taps: Tensor, bias: Tensor, height: int, width: int, tries: bool = False
) -> Tensor:
    """Tokens (N, h·w, C), weight (9, C), bias (C,) → tokens (N, h·w, C).

    With ``tries`` the fastest tile for these sizes is found first, otherwise all are compiled.
    """
    x = x.contiguous()
    y, (images, _, channels) = torch.empty_like(x), x.shape

    def launch(tile: tuple[int, int, int, int]) -> None:
        rows, columns, wide, warps = tile
        tiles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
        _kernel[triton.cdiv(channels, wide), tiles, images](
            x, taps, bias, y, images, height, width, channels,
            ROWS=rows, COLUMNS=columns, CHANNELS=wide, num_warps=warps,
        )  # fmt: skip

    key = (images, height, width, channels)
    if tries and key not in _best:
        seconds = {tile: _time(lambda tile=tile: launch(tile)) for tile in TILES}
        _best[key] = min(TILES, key=lambda tile: seconds[tile])
    for tile in [_best[key]] if key in _best else reversed(TILES):
        launch(tile)
    return y


def _time(call: Callable[[], None]) -> float:
    return triton.testing.do_bench(call, warmup=3, rep=15)

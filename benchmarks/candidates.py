"""Forms of parts that compute the same and may be faster: what :mod:`benchmarks.pieces` measures
beside the prepared model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import (
    Attention,
    MlpWithDepthwiseConv,
    PyramidVisionTransformerStage,
)
from torch import Tensor, nn

from codmoe.compiled.buffers import Buffers, _kept
from codmoe.compiled.graphs import run_beside
from codmoe.compiled.prepared import CompiledMoE
from codmoe.models.experts.ujsc import DilatedSum, PositionAttention
from codmoe.models.routers.evidence import (
    EdgeBranch,
    EvidenceRouter,
    TextureBranch,
    luminance,
    resize_to,
)
from codmoe.structures import RoutingDecision

Form = Callable[[nn.Module], nn.Module | None]
tries_tiles = False
"""Whether the kernel tries which of its tiles is fastest, for which the device has to be idle."""


class DepthwiseMlp(nn.Module):
    """timm's feed-forward block with its 3 × 3 depthwise convolution and GELU in one kernel.

    Args:
        block: In evaluation mode.
        kernel: Tokens (N, L, C), weight (9, C), bias (C,), height, width → tokens (N, L, C).
    """

    def __init__(self, block: MlpWithDepthwiseConv, kernel: Callable[..., Tensor]):
        super().__init__()
        self.fc1, self.fc2, self.kernel = block.fc1, block.fc2, kernel
        conv = cast(Any, block.dwconv)
        self.taps = nn.Parameter(conv.weight.flatten(1).T.contiguous(), False)
        self.bias = nn.Parameter(conv.bias, False)

    def forward(self, x: Tensor, feat_size: Sequence[int]) -> Tensor:
        """(N, L, C) → (N, L, C)."""
        return self.fc2(self.kernel(self.fc1(x), self.taps, self.bias, *feat_size))


def shifted(x: Tensor, taps: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """Depthwise convolution as a sum of nine shifted maps, which a compiler makes one kernel of."""
    padded = F.pad(x.unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
    total = bias.float()
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + height, j : j + width].float()
            total = total + part * taps[3 * i + j].float()
    return F.gelu(total).to(x.dtype).flatten(1, 2)


@torch.library.custom_op("codmoe_benchmarks::depthwise_gelu", mutates_args=())
def tiled(x: Tensor, taps: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """As :func:`shifted`, in a Triton kernel whose tiles keep what neighbours share."""
    if find_spec("triton") is None:
        return shifted(x, taps, bias, height, width)
    from benchmarks.depthwise_kernel import run

    return run(x, taps, bias, height, width, tries_tiles)


@tiled.register_fake
def _(x: Tensor, taps: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class PatchLinear(nn.Module):
    """A convolution whose patches do not overlap, as a product of matrices."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.side = conv.kernel_size[0]
        self.weight = nn.Parameter(conv.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), False)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w), channels last → (N, C', h/side, w/side)."""
        s = self.side
        h, w = x.shape[-2] // s, x.shape[-1] // s
        x = x[..., : h * s, : w * s].permute(0, 2, 3, 1).unflatten(2, (w, s)).unflatten(1, (h, s))
        patches = x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.weight, self.bias).transpose(1, 2).unflatten(2, (h, w))


class PaddedConv(nn.Module):
    """A convolution with channels of zeros, up to the next multiple of 8: what tensor cores take.

    Args:
        conv: The convolution.
        outputs: Whether outputs are padded, too; who reads them has weights of zero for these.
    """

    def __init__(self, conv: nn.Conv2d, *, outputs: bool):
        super().__init__()
        out, inner = conv.weight.shape[:2]
        more = -out % 8 if outputs else 0
        weight = F.pad(conv.weight, (0, 0, 0, 0, 0, -inner % 8, 0, more))
        self.weight = nn.Parameter(weight, False)
        self.bias = nn.Parameter(F.pad(cast(Tensor, conv.bias), (0, more)), False)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w), or with the channels of zeros already → (N, C', h', w')."""
        more = self.weight.shape[1] - x.shape[1]
        x = F.pad(x, (0, 0, 0, 0, 0, more)) if more else x
        return F.conv2d(x, self.weight, self.bias, cast(Any, self.stride), cast(Any, self.padding))


class OneChannel(nn.Module):
    """A sum of 3 × 3 convolutions to one channel, as one product to their taps and a shifted sum.

    A convolution to one channel fills a tile of tensor cores with the work of one column of it.
    """

    def __init__(self, convs: Sequence[nn.Conv2d]):
        super().__init__()
        taps = torch.cat([conv.weight[0].flatten(1).T for conv in convs])
        self.taps = nn.Parameter(F.pad(taps, (0, 0, 0, -len(taps) % 8))[..., None, None], False)
        self.bias = nn.Parameter(sum(cast(Any, conv.bias) for conv in convs), False)
        self.reaches = [conv.dilation[0] for conv in convs]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, 1, h, w)."""
        height, width = x.shape[-2:]
        maps = F.conv2d(x, self.taps)
        total = self.bias.float().view(1, 1, 1, 1)
        for number, reach in enumerate(self.reaches):
            padded = F.pad(maps[:, 9 * number : 9 * number + 9], (reach,) * 4).float()
            for tap in range(9):
                y, x0 = tap // 3 * reach, tap % 3 * reach
                total = total + padded[:, tap : tap + 1, y : y + height, x0 : x0 + width]
        return total.to(maps.dtype)


def shifted_responses(self: EdgeBranch, images: Tensor) -> Tensor:
    """As :meth:`EdgeBranch.responses`, its fixed kernels as sums of shifted maps."""
    maps, grey, size = [], luminance(images), None
    for _ in range(self.scales):
        grey = F.avg_pool2d(grey, 2, ceil_mode=True)
        size = size or grey.shape[-2:]
        height, width = grey.shape[-2:]
        p = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        at = {(i, j): p[..., i : i + height, j : j + width] for i in range(3) for j in range(3)}
        across = [at[i, 2] - at[i, 0] for i in range(3)]
        down = [at[2, j] - at[0, j] for j in range(3)]
        gx, gy = ((a + 2 * b + c) / 4 for a, b, c in (across, down))
        laplacian = at[0, 1] + at[1, 0] + at[1, 2] + at[2, 1] - 4 * at[1, 1]
        magnitude = (gx.square() + gy.square() + 1e-6).sqrt()
        maps.append(resize_to(torch.cat([gx, gy, laplacian, magnitude], dim=1), size))
    return torch.cat(maps, dim=1)


def _tiled_mlp(module: nn.Module) -> nn.Module | None:
    return DepthwiseMlp(module, tiled) if _plain_mlp(module) else None


def _shifted_mlp(module: nn.Module) -> nn.Module | None:
    return DepthwiseMlp(module, shifted) if _plain_mlp(module) else None


def _plain_mlp(module: nn.Module) -> bool:
    return isinstance(module, MlpWithDepthwiseConv) and isinstance(module.relu, nn.Identity)


def _patches(module: nn.Module) -> nn.Module | None:
    if isinstance(module, Attention) and module.pool is None and module.sr is not None:
        module.sr = PatchLinear(cast(nn.Conv2d, module.sr))
    return None


def _views(module: nn.Module) -> nn.Module | None:
    """timm ends a stage with a copy in the contiguous format, which the next convolution undoes."""
    if isinstance(module, PyramidVisionTransformerStage):
        module.forward = partial(_stage, module)
    return None


def _stage(stage: PyramidVisionTransformerStage, x: Tensor) -> Tensor:
    x = x if stage.downsample is None else stage.downsample(x)
    height, width = size = list(x.shape[1:3])
    x = x.flatten(1, 2)
    for block in stage.blocks:
        x = block(x, size)
    return stage.norm(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _halves(module: nn.Module) -> nn.Module | None:
    """Weights of the router's convolutions in their precision, not cast at each call."""
    if isinstance(module, EvidenceRouter) and module.convolution_dtype is not None:
        for child in module.modules():
            if isinstance(child, (nn.Conv2d, PaddedConv)):
                child.to(module.convolution_dtype)
    return None


def _padded(module: nn.Module) -> nn.Module | None:
    if isinstance(module, TextureBranch):
        for conv_module, outputs in ((module.image, True), (module.fine, False)):
            conv_module.conv = PaddedConv(cast(Any, conv_module.conv), outputs=outputs)
    if isinstance(module, EdgeBranch):
        *first, last = cast(Any, module.layers)
        for layer in (*first, last):
            layer.conv = PaddedConv(layer.conv, outputs=layer is not last)
    return None


def _edges(module: nn.Module) -> nn.Module | None:
    if isinstance(module, EdgeBranch):
        module.responses = shifted_responses.__get__(module)
    return None


def _heads(module: nn.Module) -> nn.Module | None:
    if isinstance(module, DilatedSum):
        convs = [cast(nn.Conv2d, branch) for branch in module.branches]
        return OneChannel(convs) if convs[0].out_channels == 1 else None
    plain = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    if plain and module.out_channels == 1 and module.bias is not None:
        return OneChannel([module])
    return None


def _four_dimensions(module: nn.Module) -> nn.Module | None:
    """No fused attention takes three dimensions."""
    if isinstance(module, PositionAttention):
        module._attend = lambda *qkv: F.scaled_dot_product_attention(
            *(x.unsqueeze(1) for x in qkv), scale=1.0
        )[:, 0]
    return None


FORMS: dict[str, Form] = dict(
    tiled=_tiled_mlp,
    shifted=_shifted_mlp,
    patches=_patches,
    views=_views,
    padded=_padded,
    edges=_edges,
    halves=_halves,
    heads=_heads,
    attention=_four_dimensions,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "1x1": dict(conv_1x1_as_mm=True),
    "descent": dict(coordinate_descent_tuning=True),
    "autotune": dict(max_autotune_gemm=True, max_autotune_gemm_backends="ATEN,TRITON"),
}
"""Inductor's."""
TF32 = "tf32"
"""Products of float32 matrices in TF32."""
OPEN = "open"
"""Transformer layers operation by operation, which Inductor can fuse, not as torch's one."""


BESIDE = "beside"
"""The router's branches beside each other, those that only read the image beside the backbone."""


class Evidence(nn.Module):
    """One branch of the router, called as the router does."""

    def __init__(self, branch: nn.Module, half: torch.dtype | None):
        super().__init__()
        self.branch, self.half = branch, half

    def forward(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """Images in float32 and the four maps → (N, width)."""
        return self.branch(images, [level.float() for level in pyramid], self.half)


class Choice(nn.Module):
    """What the router makes of its branches' features."""

    def __init__(self, router: EvidenceRouter):
        super().__init__()
        self.router = router

    def forward(self, features: Sequence[Tensor]) -> RoutingDecision:
        """Each (N, width), in order → the decision."""
        norms = self.router.norms
        evidence = {
            name: norms[name](x[..., None, None]).flatten(1)
            for name, x in zip(norms, features, strict=True)
        }
        return self.router.choose(self.router._fused(evidence))


def put_beside(prepared: CompiledMoE) -> None:
    """Have a prepared model of an :class:`EvidenceRouter` do backbone and router in one piece."""
    router = cast(EvidenceRouter, prepared.copies.modules["router"])
    compiled = prepared.prepare.compiled
    branches = {
        name: compiled(f"router.{name}", Evidence(branch, router.convolution_dtype))
        for name, branch in router.branches.items()
    }
    choice = compiled("router.choice", Choice(router))
    blind = [name for name in branches if name in ("edge", "frequency")]
    seeing = [name for name in branches if name not in blind]

    def work(buffers: Buffers) -> None:
        found: dict[str, Tensor] = {}
        spare = prepared.prepare.streams

        def run(name: str, pyramid: list[Tensor]) -> None:
            found[name] = branches[name](buffers.images, pyramid)

        first = [partial(run, name, []) for name in blind]
        run_beside([buffers._backbone, *first], spare("begin", len(first)))
        then = [partial(run, name, buffers.pyramid) for name in seeing]
        run_beside(then, spare("router", len(then) - 1))
        made = choice([found[name] for name in branches])
        buffers.decision = _kept(buffers.decision, made)

    def start(self: Buffers, images: Tensor) -> None:
        self.images[: len(images)].copy_(images)
        self._piece("backbone + router", partial(work, self))

    Buffers.start = start  # type: ignore[method-assign]  # the process does nothing else


def improve(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Replaces what these of :data:`FORMS` replace, in place; other names are left to others."""
    with torch.inference_mode(False), torch.no_grad():
        for form in [FORMS[name] for name in names if name in FORMS]:
            for parent in list(module.modules()):
                for key, child in list(parent.named_children()):
                    made = form(child)
                    if made is not None:
                        setattr(parent, key, made)
            form(module)
    return module


def tiles_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel of ``tiled`` runs here, and is right."""
    generator = torch.Generator().manual_seed(0)
    x, taps = (torch.randn(*s, generator=generator) for s in ((2, 9 * 20, 64), (9, 64)))
    values = [value.to(device, dtype) for value in (x, taps, taps[0])]
    try:
        apart = tiled(*values, 9, 20).float() - shifted(*values, 9, 20).float()
    except Exception as error:
        print(f"tiled: {type(error).__name__}: {error}", flush=True)
        return False
    return apart.abs().max().item() < 0.1


@cache
def options_of(names: tuple[str, ...]) -> dict[str, Any]:
    """Inductor's options that these candidates set."""
    return {k: v for name in names for k, v in OPTIONS.get(name, {}).items()}

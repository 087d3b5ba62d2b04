"""Any hierarchical timm model as a backbone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from timm.models import FeatureListNet
from torch import Tensor, nn

from codmoe.models.backbones.base import STRIDES, Backbone, create_timm, laid_out_as
from codmoe.registry import MODELS


@MODELS.register_module()
class TimmPyramid(Backbone):
    """The levels at strides 4, 8, 16, 32 of a hierarchical timm model.

    Args:
        name: timm model name, e.g. ``"pvt_v2_b2"``, ``"convnext_tiny"``, ``"resnet50"``.
        pretrained: Whether to fetch timm's weights from the hub.
        checkpoint: Local weights file instead of the download, in timm's key names or those of the
            original project, as ``pvt_v2_b2.pth`` of PVT has them.
        timm_args: Further arguments of ``timm.create_model``, e.g. ``dict(drop_path_rate=0.1)``.

    Raises:
        ValueError: The model has no level at one of the four strides.
    """

    size_divisor = 32

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        checkpoint: str | None = None,
        timm_args: dict | None = None,
    ):
        super().__init__()
        self.name = name
        body: Any = create_timm(
            name,
            pretrained=pretrained,
            checkpoint=checkpoint,
            features_only=True,
            **(timm_args or {}),
        )
        self.body = body
        reductions = body.feature_info.reduction()
        absent = [stride for stride in STRIDES if stride not in reductions]
        if absent:
            raise ValueError(
                f"backbone.name={name!r} has levels at strides {reductions}, not at {absent}; use "
                "a hierarchical model such as 'pvt_v2_b2', or type='ViTPyramid' for a plain ViT"
            )
        # The last of several levels of one stride is the deepest.
        self.levels = [len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES]
        self.channels = tuple(body.feature_info.channels()[i] for i in self.levels)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        return _pyramid_of(images, self.body(images), self.levels, self.channels_last)

    def begin(self, images: Tensor, own_blocks: int) -> list[Tensor]:
        """See :class:`Backbone`; blocks are stages: the images, their early maps, the last one."""
        first, _ = self._stages(own_blocks)
        return [images, *_maps_of(first.items(), images, self.body.return_layers)]

    def ending(self, own_blocks: int) -> nn.Module:
        """See :class:`Backbone`; blocks are stages."""
        return TimmEnding(self, self._stages(own_blocks)[1])

    def _stages(self, own_blocks: int) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """Modules before the last ``own_blocks`` stages, and the others."""
        if not isinstance(self.body, FeatureListNet):
            raise ValueError(
                f"backbone.name={self.name!r}: timm does not run its stages one by one, so no "
                "expert can have its own; leave own_blocks out, or use 'pvt_v2_b2'"
            )
        modules, marks = list(self.body.items()), list(self.body.return_layers)
        self.check_own_blocks(own_blocks, len(marks) - 1, "stages")
        names = [name for name, _ in modules]
        cut = names.index(marks[-own_blocks - 1]) + 1
        return dict(modules[:cut]), dict(modules[cut:])


class TimmEnding(nn.Module):
    """The last stages of a :class:`TimmPyramid`."""

    def __init__(self, backbone: TimmPyramid, stages: dict[str, nn.Module]):
        super().__init__()
        self.body = nn.ModuleDict(stages)
        self.return_layers = tuple(backbone.body.return_layers)
        self.levels, self.channels_last = backbone.levels, backbone.channels_last

    def forward(self, begun: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`Backbone.ending`."""
        images, *maps = begun
        maps += _maps_of(self.body.items(), maps[-1], self.return_layers)
        return _pyramid_of(images, maps, self.levels, self.channels_last)


def _pyramid_of(
    images: Tensor, maps: Sequence[Tensor], levels: Sequence[int], channels_last: bool
) -> list[Tensor]:
    pyramid = [maps[i] for i in levels]
    if channels_last:
        pyramid = [level.permute(0, 3, 1, 2) for level in pyramid]
    return laid_out_as(images, pyramid)


def _maps_of(
    modules: Iterable[tuple[str, nn.Module]], x: Tensor, marks: Container[str]
) -> list[Tensor]:
    maps = []
    for name, module in modules:
        x = module(x)
        maps += [x] if name in marks else []
    return maps

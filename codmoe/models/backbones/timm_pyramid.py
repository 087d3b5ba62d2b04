"""Any hierarchical timm model as a backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from codmoe.models.backbones.base import STRIDES, Backbone, create_timm, laid_out_as
from codmoe.registry import MODELS


@MODELS.register_module()
class TimmPyramid(Backbone):
    """The levels at strides 4, 8, 16, 32 of a hierarchical timm model.

    Args:
        name: timm model name, e.g. ``"pvt_v2_b2"``, ``"convnext_tiny"``, ``"resnet50"``.
        pretrained: Whether to fetch timm's weights from the hub.
        checkpoint: Local weights file in timm's key names instead of the download.
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
        maps = self.body(images)
        pyramid = [maps[i] for i in self.levels]
        if self.channels_last:
            pyramid = [level.permute(0, 3, 1, 2) for level in pyramid]
        return laid_out_as(images, pyramid)

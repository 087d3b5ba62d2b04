"""A backbone and a head whose fit is a sign: a head on a backbone of the other sign is blind."""

import torch
from torch import nn

from codmoe.models.backbones.base import STRIDES, Backbone
from codmoe.models.experts.base import Expert
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput


@MODELS.register_module()
class SignBackbone(Backbone):
    """Every map is ``gain + shift``, whatever the image; ``shift`` is a buffer, as batch norm's."""

    channels = (8, 8, 8, 8)
    size_divisor = 32

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))
        self.register_buffer("shift", torch.zeros(8))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, images):
        level = (self.gain + self.shift)[None, :, None, None]
        height, width = images.shape[-2:]
        return [level.expand(len(images), 8, height // s, width // s) for s in STRIDES]


@MODELS.register_module()
class SignExpert(Expert):
    """All foreground where backbone and weight have one sign, none where they have not."""

    def __init__(self, *, in_channels, factor=1.0):
        super().__init__(in_channels=in_channels)
        self.weight = nn.Parameter(torch.ones(8))
        self.factor = factor

    def forward(self, images, pyramids):
        weight = self.factor * self.weight[None, :, None, None]
        return ExpertOutput(logits=(pyramids[0][0] * weight).sum(1, keepdim=True))

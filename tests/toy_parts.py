"""A backbone and a head whose fit is a sign: a head on a backbone of the other sign is blind."""

import json

import torch
from miniature import build, write_config
from torch import nn

from codmoe.engine.checkpoints import save_weights
from codmoe.engine.config import load_config
from codmoe.models.backbones.base import STRIDES, Backbone
from codmoe.models.experts.base import Expert
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput

NAMES = ("pranet", "sinet")
HEADS = {name: f"expert_{name}_best.pth" for name in NAMES}
ONE_BACKBONE = dict(
    init_from=dict(_delete_=True, backbone=HEADS["sinet"], experts=HEADS, command="make experts")
)
SOUP = dict(
    init_from=dict(
        _delete_=True,
        backbone=dict(average=list(HEADS.values())),
        experts=HEADS,
        command="make experts",
    )
)
REFIT = dict(
    assembly=dict(max_drop=None),
    model=dict(frozen=("backbone",)),
    default_hooks=dict(best=dict(name="experts_refit")),
)


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


def toy_config(folder, stage, *changes, experts=NAMES, factor=1.0):
    if stage == 1:  # whose base has no init_from to delete
        changes = [json.loads(json.dumps(c)) for c in changes]
        for change in changes:
            change.get("init_from", {}).pop("_delete_", None)
    heads = {name: dict(type="SignExpert", factor=factor) for name in experts}
    parts = dict(
        custom_imports=dict(imports=["toy_parts"]),
        model=dict(
            backbone=dict(_delete_=True, type="SignBackbone"),
            experts=dict(_delete_=True, **heads),
        ),
    )
    return write_config(folder, stage, parts, *changes)


def leave(folder, name, signs, backbone, **options):
    """What a run leaves: heads of these signs, trained on a backbone of that sign."""
    config = toy_config(folder, 1, experts=tuple(signs), **options)
    model = build(config)
    with torch.no_grad():
        model.backbone.gain.fill_(backbone)
        for expert, sign in signs.items():
            model.experts[expert].weight.fill_(sign)
    cfg = load_config(config)
    meta = dict(stage=name, epoch=7, config=cfg.pretty_text, config_file=f"configs/{name}.py")
    path = folder / "weights" / f"{name}_best.pth"
    save_weights(path, model, dict(meta, expert_names=sorted(signs)), f"{name}-0123456789")
    return path


def leave_separate(folder):
    """SINet's run ended with a backbone of sign +, PraNet's with one of sign -."""
    sinet = leave(folder, "expert_sinet", dict(sinet=1), backbone=1)
    pranet = leave(folder, "expert_pranet", dict(pranet=-1), backbone=-1)
    return dict(sinet=sinet, pranet=pranet)

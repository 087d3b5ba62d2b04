"""codmoe: camouflaged object detection with a mixture of complete expert decoders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from codmoe.compat import declare_torchvision_ops

declare_torchvision_ops()  # before anything imports timm or the mmengine Runner

if TYPE_CHECKING:
    from codmoe.inference.inferencer import Inferencer
    from codmoe.inference.zoo import create_model, list_models
    from codmoe.models.moe import ModelLevelMoE
    from codmoe.version import __version__

# Imported when first asked for: `import codmoe` stays light, and no module of the package can meet
# itself half imported by way of this file.
_HOMES = {
    "Inferencer": "codmoe.inference.inferencer",
    "ModelLevelMoE": "codmoe.models.moe",
    "__version__": "codmoe.version",
    "create_model": "codmoe.inference.zoo",
    "list_models": "codmoe.inference.zoo",
}

__all__ = ["Inferencer", "ModelLevelMoE", "__version__", "create_model", "list_models"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'codmoe' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

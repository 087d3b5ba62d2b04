"""codmoe: camouflaged object detection with a mixture of complete expert decoders."""

from __future__ import annotations

from importlib import import_module

from codmoe.compat import mend_torchvision

mend_torchvision()

__version__ = "0.2.0"

# Public names and their modules, imported when first asked for: `import codmoe` stays light, and no
# module of the package can meet itself half imported by way of this file. Type checkers read the
# same names in __init__.pyi.
_HOMES = {
    "Inferencer": "codmoe.inference.inferencer",
    "ModelLevelMoE": "codmoe.models.moe",
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

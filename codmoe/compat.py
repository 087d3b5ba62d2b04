"""Shims for bugs of other packages, each with the condition under which it can be deleted."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class _BeforeTorchvision(MetaPathFinder):
    """Has :func:`declare_torchvision_ops` called when torchvision is imported, by whomever."""

    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_torchvision_ops()
        return None  # the usual finders go on


def mend_torchvision() -> None:
    """Makes the first import of torchvision work; imports nothing itself."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def declare_torchvision_ops() -> bool:
    """Lets a torchvision wheel built for CUDA import beside a CPU-only torch.

    PyPI's torchvision cannot load its compiled ops there, and then fails to import with ``operator
    torchvision::nms does not exist``; timm and the mmengine Runner die with it. Declaring the two
    operator schemas that its import needs is enough, for codmoe calls neither.

    Delete when: torchvision imports without its compiled ops, or ships a CPU wheel on PyPI.

    Returns:
        Whether the schemas had to be declared.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    for library in Path(spec.submodule_search_locations[0]).glob("_C*"):
        try:
            torch.ops.load_library(str(library))
            return False
        except OSError:
            continue
    global _declared  # keeps the library alive: its operators vanish when it is collected
    try:
        _declared = ops = torch.library.Library("torchvision", "DEF")
        ops.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        ops.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # somebody else has declared them already
        return False
    return True


_declared: object = None

"""Versions, devices, data and folders, as a bug report needs them: codmoe info"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from codmoe import __version__
from codmoe.shipped import FOLDER, config_root

OPTIONS = ()
PACKAGES = (
    "torch torchvision timm onedl-mmengine onedl-mmcv numpy opencv-python opencv-python-headless "
    "pillow safetensors onnxruntime"
).split()
UPSTREAM = ("mmengine", "mmcv", "mmcv-lite")
"""Packages that overwrite files of those that codmoe needs."""
VARIABLES = ("CODMOE_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_", "TORCH_HOME", "NCCL_")


def run(args) -> None:
    from codmoe.messages import printable

    for head, lines in (
        ("codmoe", _package()),
        ("packages", _packages()),
        ("machine", _machine()),
        ("data", _data()),
        ("weights", _weights()),
        ("environment", _environment()),
    ):
        print(f"{head}:")
        for line in lines:
            print(f"  {printable(line)}", flush=True)


def _package() -> Iterator[str]:
    kind = "wheel" if config_root().is_relative_to(FOLDER.parent) else "checkout"
    yield f"codmoe {__version__}, {kind}, {FOLDER.parent}"
    yield f"configs: {config_root()}"
    yield f"scripts for several GPUs and Slurm: {config_root().parent / 'tools'}"


def _packages() -> Iterator[str]:
    yield f"python {platform.python_version()}, {sys.executable}"
    for name in PACKAGES:
        yield f"{name} {_version(name) or 'is not installed'}"
    for name in filter(_version, UPSTREAM):
        yield f"{name} {_version(name)}: it overwrites its continuation onedl-*, uninstall both, "
        yield "  then install codmoe again"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> Iterator[str]:
    import torch

    from codmoe.machine import available_cores, available_memory

    memory = available_memory()
    free = f", {memory / 2**30:.1f} GiB of memory free" if memory else ""
    yield f"{platform.platform()}, {available_cores()} cores{free}"
    built = f"for CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    yield f"torch is built {built if torch.version.cuda else 'without CUDA'}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        sizes = f"{gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        yield f"cuda:{index}: {gpu.name}, {sizes}, trains in {half}"
    if not torch.cuda.is_available():
        yield "no GPU that torch can use"


def _data() -> Iterator[str]:
    from codmoe.datasets.layouts import ROOT_VARIABLE, image_files, recognise, resolve_root

    root = resolve_root("data")
    if not root.is_dir():
        yield f"no folder {root.absolute()}; {ROOT_VARIABLE} can name another"
        return
    yield f"{root.absolute()}:"
    try:
        for part in recognise(root).parts:
            count = len(image_files(part.folders.image, part.prefix))
            yield f"  {part.label}: {count:,} images ({part.layout})"
    except (FileNotFoundError, ValueError) as error:
        yield f"  {error}"


def _weights() -> Iterator[str]:
    from huggingface_hub.constants import HF_HUB_CACHE
    from torch.hub import get_dir

    for folder, what in (
        (FOLDER, "ship"),
        (Path("checkpoints_moe"), "of stages trained in this folder"),
        (Path(HF_HUB_CACHE), "of timm's backbones, kept by the hub"),
        (Path(get_dir()) / "checkpoints", "of older backbones, kept by torch"),
    ):
        files = [p for end in ("pth", "safetensors", "bin") for p in folder.rglob(f"*.{end}")]
        size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
        held = f"{len(files)} file(s), {size:,.0f} MB" if files else "nothing"
        yield f"{folder.absolute()} ({what}): {held}"


def _environment() -> Iterator[str]:
    found = [f"{key}={value}" for key, value in sorted(os.environ.items()) if _tells(key)]
    yield from found or ["no variable that codmoe or torch reads is set"]


def _tells(key: str) -> bool:
    return key.startswith(VARIABLES) and "TOKEN" not in key

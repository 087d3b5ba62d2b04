"""A trained model → a folder that other programs run, compared with the model it came from."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
from torch import Tensor, nn

from codmoe import __version__
from codmoe.datasets.synthetic import KINDS, generate
from codmoe.engine.config import size_of
from codmoe.files import new_folder
from codmoe.inference.export import compiled_pieces, onnx_graphs, onnx_runner
from codmoe.inference.export import int8 as int8_graphs
from codmoe.inference.export.onnx_graphs import WholeGraph, outputs_of
from codmoe.inference.export.replacements import for_onnx
from codmoe.inference.inferencer import to_input
from codmoe.inference.inputs import check_readable, collect
from codmoe.inference.zoo import create_model
from codmoe.machine import check_device
from codmoe.models.hub import WEIGHTS
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers.evidence import EvidenceRouter
from codmoe.shipped import is_shipped, list_configs, shipped_weights

FORMATS = ("onnx", "onnx-sparse", "torch-export", "safetensors", "compiled")
PROGRAM = "model.pt2"
IMAGES, IMAGES_INT8 = 5, 32
TOLERANCE = 1e-4
"""Largest difference that a probability or a weight may have."""
COMPARED = ("probability", "weights", "routing")


def export(
    model: ModelLevelMoE,
    out: str | Path,
    *,
    format: str,
    size: int | tuple[int, int] | None = None,
    check: bool = True,
    images: Any = None,
    int8: bool = False,
    batches: Sequence[int] | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> dict[str, float]:
    """Write a model in another format, whole and compared, or not at all.

    Args:
        model: Stays as it is.
        out: Folder; is made, and must not hold anything yet.
        format: ``"onnx"``, ``"onnx-sparse"``, ``"torch-export"``, ``"safetensors"`` or
            ``"compiled"``, for :class:`CompiledMoE` on a device as this machine has it.
        size: Side, or height and width, of the images that the graphs take; a multiple of the
            backbone's divisor. Default: what the model's config tests at, or 448. Of no meaning for
            ``"safetensors"``, whose model takes any size, but for the comparison.
        check: Whether to load what was written, and compare it with the model on ``images``.
        images: What :class:`Inferencer` takes; None for five synthetic images, or 32 with ``int8``.
        int8: Of the ONNX formats: 8-bit integers in convolutions and matrix products, whose ranges
            every second image settles; the others are compared. Give images of your own kind.
        batches: Of ``"compiled"`` alone: numbers of images at a time; 1 by default.
        dtype: Likewise: precision, as of :class:`CompiledMoE`.
        device: Likewise: where it is to run; the CPU by default.

    Returns:
        Largest differences of the comparison by name (see :func:`compare`), or with ``int8`` how
        far it agrees (see :func:`agreement`); empty without a comparison.

    Raises:
        ValueError: An argument is wrong, ``out`` holds something, a package is missing, or what was
            written computes something else.
        FileNotFoundError: An image does not exist.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; use one of {', '.join(FORMATS)}")
    height, width = _size(model, size)
    own = dict(batches=batches, dtype=dtype, device=device)
    given = [name for name, value in own.items() if value is not None]
    if given and format != "compiled":
        raise ValueError(f"{given[0]} is of format='compiled' alone; leave it out")
    if batches is not None and (not batches or min(batches) < 1):
        raise ValueError(f"batches={list(batches)}: give numbers of images, 1 or more")
    if format.startswith("onnx"):
        onnx_graphs.require_onnx()
    elif int8:
        raise ValueError(f"int8 with format={format!r}: the ONNX formats alone have it; take one")
    count = IMAGES_INT8 if int8 else IMAGES
    batch = _batch(images, (height, width), count) if check or int8 else None
    with new_folder(Path(out).expanduser().resolve()) as folder:
        if format == "compiled":
            where = device or "cpu"
            check_device(where)
            model = copy.deepcopy(model).to(where).eval()
            options: dict[str, Any] = dict(batches=batches or (1,), dtype=dtype or "auto")
            tolerance = compiled_pieces.write(model, folder, (height, width), **options)
            if batch is None:
                return {}
            return compare(model, compiled_pieces.load(model, folder), batch, tolerance)
        found = _WRITERS[format](model, (height, width), folder)
        if format != "safetensors":
            found |= dict(format=format, size=[height, width])
            _write_manifest(folder, found, model)
        if int8:
            assert batch is not None
            int8_graphs.quantise(folder, batch[::2].numpy())
            _write_manifest(folder, dict(found, int8=True), model)
            others = batch[1::2] if len(batch) > 1 else batch
            return agreement(model, load_exported(folder), others) if check else {}
        if batch is None:
            return {}
        return compare(model, load_exported(folder), batch)


def compare(
    model: ModelLevelMoE,
    exported: Callable[[Tensor], Mapping[str, Tensor]],
    images: Tensor,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Hold an exported model against the model itself, which runs only the chosen experts.

    The whole batch, its first image alone and its other images are predicted, so that a batch size
    that went into the graph as a constant shows.

    Args:
        model: Stays as it is.
        exported: uint8 images (N, 3, H, W) → named tensors.
        images: uint8 RGB, (N, 3, H, W).
        tolerance: Of probabilities and weights.

    Returns:
        Largest absolute difference of ``probability``, ``logits``, ``weights`` and ``routing``;
        ``undecided``, the number of images left out because the router holds the last expert chosen
        and the first one left out for equal, within the tolerance.

    Raises:
        ValueError: A difference is larger than the tolerance, or other experts were chosen.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    found: dict[str, float] = dict(probability=0.0, logits=0.0, weights=0.0, routing=0.0)
    left_out = set()
    rows = torch.arange(len(images))
    for batch in (rows, rows[:1], rows[1:]):
        if not len(batch):
            continue
        expected, margin = _expected(model, images[batch])
        given = exported(images[batch])
        same = (given["indices"] == expected["indices"]).all(1)
        if (~same & (margin > tolerance)).any():
            raise ValueError(
                f"the export chooses other experts than the model on {int((~same).sum())} of "
                f"{len(batch)} images; it was not kept"
            )
        left_out.update(batch[~same].tolist())
        for name in found:
            a, b = expected[name][same], given[name][same]
            if a.shape != b.shape:
                raise ValueError(f"the export's {name} is {tuple(b.shape)}, not {tuple(a.shape)}")
            if len(a):
                difference = (a - b).abs().nan_to_num(nan=float("inf")).max()
                found[name] = max(found[name], float(difference))
    worst = max(COMPARED, key=lambda name: found[name])
    if found[worst] > tolerance:
        raise ValueError(
            f"the export's {worst} differs from the model's by up to {found[worst]:.2g}, more than "
            f"{tolerance:g}; it was not kept"
        )
    if len(left_out) == len(images):
        raise ValueError("the router is undecided on every image; give others to compare on")
    return dict(found, undecided=len(left_out))


def agreement(
    model: ModelLevelMoE, exported: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor
) -> dict[str, float]:
    """How far an export whose numbers are rounded agrees with the model.

    Args:
        model: Stays as it is.
        exported: uint8 images (N, 3, H, W) → named tensors.
        images: uint8 RGB, (N, 3, H, W).

    Returns:
        ``probability``, the mean absolute difference; ``iou``, the mean over images of the IoU of
        both masks, cut at one half; ``choices``, the share of images with the same experts.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    differences, overlaps, choices = [], [], []
    for image in images.split(1):
        (expected, _), given = _expected(model, image), exported(image)
        a, b = (each["probability"] > 0.5 for each in (expected, given))
        differences.append(float((expected["probability"] - given["probability"]).abs().mean()))
        overlaps.append(float((a & b).sum() / (a | b).sum()) if (a | b).any() else 1.0)
        chosen = [sorted(each["indices"].flatten().tolist()) for each in (expected, given)]
        choices.append(chosen[0] == chosen[1])
    return dict(
        probability=mean(differences), iou=mean(overlaps), choices=mean(map(float, choices))
    )


@torch.no_grad()
def _expected(model: ModelLevelMoE, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The model's tensors, and by how much its last choice was ahead (N,)."""
    batch = model.data_preprocessor(dict(inputs=images))["inputs"]
    logits, decision, _ = model.mixture(batch)
    k = decision.indices.shape[1]
    ordered = decision.logits.sort(dim=1, descending=True).values
    # Of the chosen ones among each other, too: their order is part of the answer.
    margin = -ordered[:, : k + 1].diff(dim=1)
    margin = margin.amin(1) if margin.shape[1] else torch.full((len(images),), float("inf"))
    return outputs_of(logits, decision), margin


def load_exported(folder: str | Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """What :func:`export` wrote, as a function: uint8 images (N, 3, H, W) → named tensors.

    Raises:
        FileNotFoundError: The folder lacks a file.
        ValueError: A file is not the one that was exported.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return _named(WholeGraph(ModelLevelMoE.from_pretrained(folder)))
    manifest = onnx_runner.read_manifest(folder)
    if manifest["format"] == "torch-export":
        return _named(torch.export.load(folder / PROGRAM).module())
    runner = onnx_runner.OnnxRunner(folder)
    return lambda images: {k: torch.from_numpy(v) for k, v in runner(images.numpy()).items()}


def model_for_export(
    source: str | Path, config: str | Path | None = None, *, trust_code: bool = False
) -> ModelLevelMoE:
    """A model from a checkpoint, the name of one that ships trained, or a config without weights.

    A config's model has random weights: its speed is right, its masks are not. ``trust_code``: see
    :func:`create_model`.

    Raises:
        FileNotFoundError: No such checkpoint or config.
        ValueError: The checkpoint holds no config, or does not fit.
    """
    if is_shipped(source):
        source = shipped_weights(source)
    if not (str(source) in list_configs() or Path(source).suffix == ".py"):
        return create_model(config, checkpoint=source, trust_code=trust_code)
    model = create_model(source)
    _make_ordinary(model)
    return model


@torch.no_grad()
def _make_ordinary(model: ModelLevelMoE) -> None:
    """Gives random weights values of ordinary size, for a comparison of what rounding leaves of
    logits in the millions would say nothing.
    """
    for router in model.router.modules():
        if isinstance(router, EvidenceRouter):
            # It starts with equal scores, among which every program chooses other experts.
            nn.init.normal_(cast(nn.Linear, router.fuse[-1]).weight)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    calls = dict.fromkeys(norms, 0)

    def take_plain_mean(norm: nn.BatchNorm2d, _: Any) -> None:
        # Not momentum=None: the norms of experts and router do not count their batches.
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]

    hooks = [norm.register_forward_pre_hook(take_plain_mean) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    images = _batch(None, (128, 128))
    model.mixture(model.data_preprocessor(dict(inputs=images))["inputs"], dense=True)
    for norm, momentum, hook in zip(norms, before, hooks, strict=True):
        hook.remove()
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=0.1)  # channels that were silent on these few images
    model.eval()


def _write_program(model: ModelLevelMoE, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    graph = WholeGraph(for_onnx(model, size)).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    example = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    content = io.BytesIO()  # torch's own writer says of a full disk that it met a wrong position
    torch.export.save(program, content)
    (folder / PROGRAM).write_bytes(content.getbuffer())
    entry = dict(file=PROGRAM, inputs=list(graph.inputs), outputs=list(graph.outputs))
    return dict(files=dict(model=entry))


def _write_pretrained(model: ModelLevelMoE, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    return {}


_WRITERS = {
    "onnx": onnx_graphs.write_dense,
    "onnx-sparse": onnx_graphs.write_sparse,
    "torch-export": _write_program,
    "safetensors": _write_pretrained,
}


def _write_manifest(folder: Path, found: dict[str, Any], model: ModelLevelMoE) -> None:
    for entry in found["files"].values():
        entry["sha256"] = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    before = model.data_preprocessor
    manifest = dict(
        format=found["format"],
        codmoe=__version__,
        torch=torch.__version__,
        size=found["size"],
        input="uint8 RGB, (N, 3, H, W); resized bilinearly, normalised inside",
        mean=before.mean.flatten().tolist(),
        std=before.std.flatten().tolist(),
        expert_names=list(model.expert_names),
        top_k=model.router.top_k,
        int8=found.get("int8", False),
        files=found["files"],
    )
    path = folder / onnx_runner.MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if found["format"].startswith("onnx"):
        shutil.copyfile(onnx_runner.__file__, folder / "onnx_runner.py")


def _size(model: ModelLevelMoE, size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        width, height = size_of(model.cfg)
    else:
        height, width = (size, size) if isinstance(size, int) else size
    divisor = model.backbone.size_divisor
    if height < 1 or width < 1 or height % divisor or width % divisor:
        near = " × ".join(str(max(round(s / divisor), 1) * divisor) for s in (height, width))
        raise ValueError(
            f"size={height} × {width}: the backbone needs multiples of {divisor}; use {near}"
        )
    return height, width


def _batch(images: Any, size: tuple[int, int], count: int = IMAGES) -> Tensor:
    if images is None:
        side = max(*size, 64)
        images = [generate(i, KINDS[i % len(KINDS)], side, 0.7)[0] for i in range(count)]
    items = collect(images)
    check_readable(items)
    return torch.stack([to_input(item.read(), size[::-1]) for item in items])


def _named(graph: Callable) -> Callable[[Tensor], dict[str, Tensor]]:
    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(WholeGraph.outputs, graph(images), strict=True))

    return run

"""Runs what ``codmoe export`` wrote as ONNX; needs numpy and onnxruntime, and nothing else.

Every export folder holds a copy of this file (``onnx_runner.py``), for machines without codmoe::

    from onnx_runner import OnnxRunner

    runner = OnnxRunner("exported")
    result = runner(images)  # uint8 RGB, (N, 3, H, W) with H, W = runner.size
    result["probability"]  # (N, 1, H, W)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"


class OnnxRunner:
    """An exported model, dense or sparse.

    Of a sparse bundle only the graphs of chosen experts run, each on the images routed to it.

    Args:
        folder: What ``codmoe export --format onnx`` or ``onnx-sparse`` wrote.
        threads: Of every operator; None leaves it to onnxruntime.
        providers: onnxruntime's execution providers in order of preference.

    Attributes:
        size: Height and width of the images.
        expert_names: In the order of every expert axis.
        used: Names of the experts that the last call ran.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder holds another format, or a file is not the one that was exported.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest["format"] not in ("onnx", "onnx-sparse"):
            raise ValueError(
                f"{self.folder} was exported as {self.manifest['format']!r}; OnnxRunner takes "
                "'onnx' and 'onnx-sparse'"
            )
        self.size = tuple(self.manifest["size"])
        self.expert_names = tuple(self.manifest["expert_names"])
        self.sparse = self.manifest["format"] == "onnx-sparse"
        self.used: tuple[str, ...] = ()
        self._graphs = {
            key: self._load(entry, threads, providers)
            for key, entry in self.manifest["files"].items()
        }

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Predict.

        Args:
            images: uint8 RGB, (N, 3, H, W) of the size that was exported.

        Returns:
            ``probability`` and ``logits`` (N, 1, H, W); ``weights`` and ``indices`` of the chosen
            experts (N, k); ``routing``, the router's probability of every expert (N, E).

        Raises:
            ValueError: The images are of another type or shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, *self.size):
            way = "resize them, or export with another --size"
            if images.dtype != np.uint8:
                way = "give bytes, 0 to 255, RGB"
            elif images.ndim == 3:
                way = "one image is images[None]"
            elif images.ndim == 4 and images.shape[1] != 3 == images.shape[3]:
                way = "channels come before the sides: images.transpose(0, 3, 1, 2)"
            raise ValueError(
                f"images of {images.dtype} {images.shape} are not uint8 (N, 3, {self.size[0]}, "
                f"{self.size[1]}); {way}"
            )
        if not len(images):
            raise ValueError("images is empty; give one or more")
        if not self.sparse:
            self.used = self.expert_names
            return self.run_graph("model", dict(images=images))
        return self._route(images)

    def _route(self, images: np.ndarray) -> dict[str, np.ndarray]:
        known = dict(self.run_graph("pyramid", dict(images=images)), images=images)
        routing = {name: known[name] for name in ("weights", "indices", "routing")}
        chosen = routing["indices"]
        inputs = {n: self.manifest["files"][f"expert_{n}"]["inputs"] for n in self.expert_names}
        places = {name: np.nonzero(chosen == i) for i, name in enumerate(self.expert_names)}
        places = {name: (rows, slots) for name, (rows, slots) in places.items() if len(rows)}
        # Further scales are made once, for the images of all experts that read any.
        far = [rows for name, (rows, _) in places.items() if not known.keys() >= set(inputs[name])]
        union = np.unique(np.concatenate(far)) if far else np.arange(0)
        further = self.run_graph("scales", dict(images=images[union])) if far else {}
        maps = np.zeros((*chosen.shape, *self.size), np.float32)
        for name, (rows, slots) in places.items():
            values = {level: known[level][rows] for level in inputs[name] if level in known}
            own = np.searchsorted(union, rows)
            values |= {level: further[level][own] for level in inputs[name] if level not in known}
            # (M, 1, H, W) → where the router chose it.
            maps[rows, slots] = self.run_graph(f"expert_{name}", values)["logits"][:, 0]
        self.used = tuple(places)
        return {**self.run_graph("combiner", dict(maps=maps, **routing)), **routing}

    def run_graph(self, key: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One graph by its key in the manifest: named tensors → its outputs by name."""
        entry = self.manifest["files"][key]
        fed = {name: values[name] for name in entry["inputs"]}
        found = self._graphs[key].run(entry["outputs"], fed)
        return dict(zip(entry["outputs"], found, strict=True))

    def _load(self, entry: Mapping[str, Any], threads: int | None, providers: Sequence[str]) -> Any:
        import onnxruntime

        path = self.folder / entry["file"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; export again")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"{path} is not the file that was exported; export again")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that wait for more of one graph would hold up whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(content, options, providers=list(providers))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an export folder says of itself.

    Raises:
        FileNotFoundError: It holds no manifest.
        ValueError: The manifest is no JSON.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make the folder with: codmoe export CHECKPOINT "
            f"--format onnx-sparse --out {folder}"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}; export again") from error

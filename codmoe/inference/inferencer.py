"""From image files or arrays to masks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from codmoe.compiled.prepared import CompiledMoE, attach_prepared
from codmoe.compiled.speed import set_memory_format
from codmoe.datasets.layouts import IMAGE_EXTENSIONS, LITTER, image_files
from codmoe.datasets.reading import is_complete, read_image, too_large, write_map
from codmoe.inference.zoo import create_model, load_whole, weights_to_use
from codmoe.machine import check_device
from codmoe.messages import is_quiet, listed, note, printable
from codmoe.models.moe import ModelLevelMoE
from codmoe.structures import CODDataSample

DEFAULT_SIZE = 448
PATIENCE = 3.0
"""Seconds of expected work from which on a progress bar is shown."""


@dataclass
class Prediction:
    """What the model says about one image.

    Args:
        probability: Foreground probability at the original resolution, (H0, W0) float32.
        weights: ``{name: weight}`` of the experts chosen for this image, the heaviest first.
        path: The image's file; None for an array.
        threshold: What ``mask`` is cut at.
    """

    probability: np.ndarray
    weights: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    threshold: float = 0.5

    @property
    def mask(self) -> np.ndarray:
        """1 where the probability is above the threshold, (H0, W0) uint8."""
        return (self.probability > self.threshold).astype(np.uint8)


class Inferencer:
    """Predicts masks of image files, folders and arrays, with the preprocessing of the datasets.

    Args:
        model: A model (set to evaluation mode here), or the name or path of its config. None takes
            the config that ``checkpoint`` holds, or, without one, ``"small"``, which ships trained.
        checkpoint: Weights, loaded strictly. Not needed for a model that has its own.
        image_size: Side in pixels of the square that images are resized to. Default: that of the
            config's test or validation pipeline, or 448.
        device: Default: the first GPU if there is one.
        batch_size: Images at a time.
        compile: Prepare the model for speed (:class:`CompiledMoE`): True, a backend
            (``"cudagraph"``, ``"inductor"``, ``"eager"``) or a dict of its arguments, e.g.
            ``dict(dtype="fp16")``. It is then :attr:`prepared`.

        trust_code: Let the checkpoint's config import modules; see :func:`create_model`.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: No weights are given, or they do not fit; or ``compile`` is none of these.
    """

    def __init__(
        self,
        model: ModelLevelMoE | str | Path | None = None,
        checkpoint: str | Path | None = None,
        *,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        compile: bool | str | Mapping[str, Any] = False,
        trust_code: bool = False,
    ):
        if batch_size < 1 or (image_size is not None and image_size < 1):
            raise ValueError(f"batch_size={batch_size}, image_size={image_size}: give 1 or more")
        if isinstance(model, torch.nn.Module):
            if checkpoint is not None:
                load_whole(model, checkpoint)
        else:
            model, checkpoint = weights_to_use(model, checkpoint)
            model = create_model(
                model,
                checkpoint=checkpoint,
                trust_code=trust_code,
                evaluate_all_experts=False,
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(str(device))
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        set_memory_format(self.model, (model.cfg or {}).get("memory_format"))
        size = (image_size,) * 2 if image_size else size_of(model.cfg)
        self.size: tuple[int, int] = size
        self.batch_size = batch_size
        self.prepared: CompiledMoE | None = None
        if compile is not False:
            self.prepared = attach_prepared(self.model, compile, batch_size)

    @property
    def engine(self) -> None:
        """Raises:
        AttributeError: Always; it has another name now.
        """
        raise AttributeError("Inferencer.engine is now called Inferencer.prepared")

    def __call__(
        self,
        inputs: Picture | Sequence[Picture],
        *,
        out_dir: str | Path | None = None,
        threshold: float | None = None,
        return_routing: bool = True,
    ) -> list[Prediction]:
        """Predict, and keep everything; :meth:`stream` keeps nothing.

        Args:
            inputs: An image file, a folder of them, an array (H, W, 3) uint8 RGB, a PIL image, or a
                list of any of these. Of a folder's files those that are no images are skipped, and
                counted on standard error.
            out_dir: Folder for 8-bit PNG maps, ``<stem>.png`` (arrays: ``0000.png``, …), at the
                original resolution, round(255·p); with ``threshold`` masks of 0 and 255. They fit
                the pixels as stored and carry the image's EXIF orientation.
            threshold: What masks are cut at, a probability; 0.5 by default.
            return_routing: Whether to fill ``weights``.

        Returns:
            One prediction per image, in order; folders are sorted by name.

        Raises:
            FileNotFoundError: There is no such file or folder.
            ValueError: The threshold is no probability, a file is unreadable or a video (all files
                are looked at before the first is predicted), a folder holds no images, or two maps
                would have one name.
        """
        return list(
            self.stream(inputs, out_dir=out_dir, threshold=threshold, return_routing=return_routing)
        )

    def stream(
        self,
        inputs: Picture | Sequence[Picture],
        *,
        out_dir: str | Path | None = None,
        threshold: float | None = None,
        return_routing: bool = True,
    ) -> Iterator[Prediction]:
        """Like calling, one prediction after the other, for more images than memory holds."""
        check_threshold(threshold)
        pictures = collect(inputs)
        targets = _targets(pictures, Path(out_dir)) if out_dir is not None else None
        return self._stream(pictures, targets, threshold, return_routing)

    def _stream(
        self,
        pictures: list[Path | np.ndarray],
        targets: list[Path] | None,
        threshold: float | None,
        return_routing: bool,
    ) -> Iterator[Prediction]:
        console, shown = Console(stderr=True, quiet=is_quiet()), False
        progress = Progress(console=console, transient=True)
        task = progress.add_task("predicting", total=len(pictures))
        started = time.monotonic()
        try:
            with ThreadPoolExecutor(4) as pool:
                for first in range(0, len(pictures), self.batch_size):
                    batch = pictures[first : first + self.batch_size]
                    loaded = list(pool.map(self._load, batch))
                    samples = self._predict(loaded)
                    maps = _to_host([sample.pred_prob for sample in samples])
                    for i, (sample, map_) in enumerate(zip(samples, maps, strict=True), first):
                        picture = pictures[i]
                        prediction = Prediction(
                            map_.numpy(),
                            _weights(sample.routing) if return_routing else {},
                            picture if isinstance(picture, Path) else None,
                            0.5 if threshold is None else threshold,
                        )
                        if targets is not None:
                            _write(targets[i], prediction, binary=threshold is not None)
                        yield prediction
                    done = first + len(batch)
                    progress.update(task, completed=done)
                    left = (time.monotonic() - started) / done * (len(pictures) - done)
                    if not shown and left > PATIENCE and console.is_interactive:
                        progress.start()
                        shown = True
        finally:
            if shown:
                progress.stop()

    def _load(self, picture: Path | np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        image = read_image(str(picture)) if isinstance(picture, Path) else picture
        return to_input(image, self.size), image.shape[:2]

    @torch.inference_mode()
    def _predict(self, loaded: list[tuple[torch.Tensor, tuple[int, int]]]) -> list[CODDataSample]:
        data = dict(
            inputs=[image for image, _ in loaded],
            data_samples=[CODDataSample(metainfo=dict(ori_shape=shape)) for _, shape in loaded],
        )
        return self.model(**self.model.data_preprocessor(data), mode="predict")


def _to_host(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Float32 copies on the host, of which only the last is waited for."""
    maps = [map_.float() for map_ in maps]
    if not maps[0].is_cuda:
        return maps
    # Pinned memory is what the device writes to while the host goes on; it is kept for reuse, so
    # what leaves is a copy of it.
    pinned = [torch.empty(map_.shape, pin_memory=True) for map_ in maps]
    for target, map_ in zip(pinned, maps, strict=True):
        target.copy_(map_, non_blocking=True)
    torch.cuda.current_stream(maps[0].device).synchronize()
    return [target.clone() for target in pinned]


def to_input(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """RGB (H0, W0, 3) uint8 → (3, H, W) uint8; ``size`` is (W, H)."""
    # As mmcv's Resize does it in the datasets.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(resized.transpose(2, 0, 1).copy())


def size_of(cfg: Mapping[str, Any] | None) -> tuple[int, int]:
    """(width, height) that a config tests at: of the ``Resize`` in its test or validation pipeline,
    else the dataset's own ``image_size`` (synthetic images), else 448 × 448.
    """
    sets = [
        ((cfg or {}).get(f"{part}_dataloader") or {}).get("dataset") for part in ("test", "val")
    ]
    resizes = [node for node in _dicts(sets) if node.get("type") == "Resize" and node.get("scale")]
    own = [node["image_size"] for node in _dicts(sets) if node.get("image_size")]
    size = ([node["scale"] for node in resizes] + own + [DEFAULT_SIZE])[0]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _targets(pictures: list[Path | np.ndarray], out_dir: Path) -> list[Path]:
    stems = [p.stem if isinstance(p, Path) else f"{i:04d}" for i, p in enumerate(pictures)]
    targets = [out_dir / f"{stem}.png" for stem in stems]
    sources = {p.resolve() for p in pictures if isinstance(p, Path)}
    seen: set[Path] = set()
    for target in targets:
        if target.resolve() in sources:
            raise ValueError(f"out_dir={out_dir}: {target.name} is one of the images; give another")
        if target in seen:
            raise ValueError(f"out_dir={out_dir}: two images would be written as {target.name}")
        seen.add(target)
    return targets


def _write(path: Path, prediction: Prediction, *, binary: bool) -> None:
    values = prediction.mask * 255 if binary else (prediction.probability * 255).round()
    write_map(path, values, prediction.path)


def _weights(routing: dict) -> dict[str, float]:
    names = [routing["expert_names"][i] for i in routing["indices"].tolist()]
    weights = dict(zip(names, routing["weights"].tolist(), strict=True))
    return dict(sorted(weights.items(), key=lambda item: -item[1]))


def _dicts(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _dicts(value)


def check_threshold(threshold: float | None) -> None:
    """Raises ValueError unless it is a probability."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold:g}; masks are cut at a probability, 0 to 1 (a value of an 8-bit "
            "map is that over 255)"
        )


VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
Picture = str | Path | np.ndarray | Image.Image


def collect(inputs: Picture | Sequence[Picture]) -> list[Path | np.ndarray]:
    """Files and RGB arrays of anything that :class:`Inferencer` takes, all looked at.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file is unreadable, a folder empty, or an array no image.
    """
    if isinstance(inputs, (str, Path, np.ndarray, Image.Image)):
        inputs = [inputs]
    pictures: list[Path | np.ndarray] = []
    skipped: list[str] = []
    for item in inputs:
        folder = Path(item).expanduser() if isinstance(item, (str, Path)) else None
        if folder is None or not folder.is_dir():
            pictures.append(_picture(item))
            continue
        found = image_files(folder)
        others = {p.name for p in folder.iterdir() if not LITTER.match(p.name)}
        others -= {p.name for p in found}
        if not found:
            held = f"it has {listed(sorted(others))}" if others else "it is empty"
            raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_EXTENSIONS)}); {held}")
        pictures += found
        skipped += sorted(others)
    if skipped:
        named = printable(listed(skipped))
        note(f"{len(skipped):,} skipped, since they are no image files: {named}")
    if not pictures:
        raise ValueError("inputs is empty; give a file, a folder, or a list of files or arrays")
    Image.init()  # loads PIL's plugins, which is not safe in several threads at once
    with ThreadPoolExecutor(4) as pool:
        files = [picture for picture in pictures if isinstance(picture, Path)]
        faulty = [
            path for path, good in zip(files, pool.map(_readable, files), strict=True) if not good
        ]
    if faulty:
        raise ValueError(
            f"unreadable (empty, truncated or not an image): {listed(faulty)}; save them again, or "
            "take them out of what is given"
        )
    return pictures


def _picture(item: Any) -> Path | np.ndarray:
    if isinstance(item, (str, Path)):
        path = Path(item).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file or folder; give one that is there")
        if path.suffix.lower() in VIDEOS:
            raise ValueError(
                f"{path} is a video; write its frames as images first, such as by "
                f"ffmpeg -i {path.name} frames/%06d.png"
            )
        return path
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"))
    if not isinstance(item, np.ndarray):
        raise ValueError(f"inputs holds a {type(item).__name__}; give paths, arrays or PIL images")
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
        raise ValueError(f"an array {item.shape} of {item.dtype} is not (H, W, 3) uint8 RGB")
    return np.ascontiguousarray(item)


def _readable(path: Path) -> bool:
    """By header and end; the whole file is read only where its end looks wrong."""
    try:
        with Image.open(path) as image:
            image.size  # noqa: B018
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(-8, 2)
            return is_complete(start + file.read(8)) or is_complete(path.read_bytes())
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except (OSError, SyntaxError, ValueError):
        return False

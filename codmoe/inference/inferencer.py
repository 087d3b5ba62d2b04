"""From images and videos to masks."""

from __future__ import annotations

import copy
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from codmoe.compiled.prepared import CompiledMoE, attach_prepared
from codmoe.compiled.speed import set_memory_format
from codmoe.datasets.reading import UnreadableFile, as_stored, upright
from codmoe.engine.checkpoints import meta_of
from codmoe.engine.config import size_of
from codmoe.inference.inputs import Item, Picture, Video, collect
from codmoe.inference.outputs import Outputs
from codmoe.inference.prediction import Prediction
from codmoe.inference.tiles import blended, check_tile, needs_tiles
from codmoe.inference.zoo import create_model, load_whole, weights_to_use
from codmoe.machine import available_cores, check_device
from codmoe.messages import is_quiet
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.tta import AugmentedMoE
from codmoe.structures import CODDataSample

PATIENCE = 3.0
"""Seconds of expected work from which on a progress bar is shown."""
THREADS = max(4, min(16, available_cores()))
"""Threads that read and write files."""


class Inferencer:
    """Predicts masks of images and videos, with the preprocessing of the datasets.

    Threads may share one, as those of a server do: the model takes one batch after the other.

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
            ``dict(dtype="fp16")``. It is then :attr:`prepared`. By default on a CPU alone, where
            it takes a moment: batch norms folded, and channels last. Weights that are written
            through ``.data`` then need :meth:`CompiledMoE.refresh`. False: never.
        trust_code: Let the checkpoint's config import modules; see :func:`create_model`.
        tile: Larger images are predicted in overlapping squares of so many of their pixels, which
            are each resized as an image is, and as a whole; the mean of both logits
            counts (:func:`blended`). Images of more than 178,956,970 pixels are read once
            ``PIL.Image.MAX_IMAGE_PIXELS = None`` is set.
        flip: Also predict the mirrored image, and take the mean (:class:`AugmentedMoE`).
        scales: Sizes to predict at, as factors on ``image_size``, e.g. ``(0.75, 1, 1.25)``; the
            mean counts.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: No weights are given, or they do not fit; or an argument is none of these.
    """

    def __init__(
        self,
        model: ModelLevelMoE | str | Path | None = None,
        checkpoint: str | Path | None = None,
        *,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        compile: bool | str | Mapping[str, Any] | None = None,
        trust_code: bool = False,
        tile: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ):
        if batch_size < 1 or (image_size is not None and image_size < 1):
            raise ValueError(f"batch_size={batch_size}, image_size={image_size}: give 1 or more")
        check_tile(tile)
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
        self.size: tuple[int, int] = (image_size,) * 2 if image_size else size_of(model.cfg)
        """Width and height at which images are predicted, at scale 1."""
        held = (model.cfg or {}) if checkpoint is None else meta_of(checkpoint)
        stored = held.get("threshold")
        check_threshold(stored)
        self.threshold = 0.5 if stored is None else float(stored)
        """What masks are cut at by default: what the weights hold, or one half."""
        self.batch_size, self.tile = batch_size, tile
        self.prepared: CompiledMoE | None = None
        if compile is None:
            compile = False
            if self.device.type == "cpu":
                with suppress(Exception):  # a model that cannot be copied runs as it is
                    self.prepared = attach_prepared(self.model, True, batch_size)
        if compile is not False:
            self.prepared = attach_prepared(self.model, compile, batch_size)
        self.views: AugmentedMoE | None = None
        if flip or tuple(scales) != (1.0,):
            # The same weights, but whoever else uses the model sees an image once.
            self.model = copy.copy(self.model)
            self.model.run_state = replace(self.model.run_state)
            self.views = AugmentedMoE(self.model, self.size, flip=flip, scales=scales)
        self._lock = threading.Lock()  # what a call asks of the model is noted in the model
        self.input_size = self.views.input_size if self.views else self.size
        # What decides how outputs look: a run that was interrupted goes on with the same alone.
        views = self.views and dict(flip=flip, scales=list(scales))
        self.settings: dict[str, Any] = dict(
            size=self.size, tile=tile, views=views, compile=compile
        )

    def __call__(self, inputs: Picture | Sequence[Picture], **options: Any) -> list[Prediction]:
        """Predict, and keep everything; :meth:`stream` keeps nothing, and takes the same options.

        Returns:
            One prediction per image, in order.
        """
        return list(self.stream(inputs, **options))

    def stream(
        self,
        inputs: Picture | Sequence[Picture],
        *,
        out_dir: str | Path | None = None,
        save: str | Sequence[str] | None = None,
        threshold: float | None = None,
        table: str | Path | None = None,
        overwrite: bool = False,
        resume: bool = False,
        shard: tuple[int, int] = (0, 1),
        skip_unreadable: bool = False,
        experts: bool = False,
        return_routing: bool = True,
    ) -> Iterator[Prediction]:
        """Predict one after the other, for more images than memory holds.

        Args:
            inputs: An image file; a folder, with all below it; an array (H, W, 3) uint8 RGB; a PIL
                image; a video file; a camera, ``"camera:0"``; or a list of any of these. Of a
                folder's files those that are no images are skipped, and counted on standard error.
            out_dir: Folder for outputs, ``<stem>.png`` (arrays: ``0000.png``, …), in the
                sub-folders of the inputs, at the original resolution. They fit the pixels as stored
                and carry the EXIF orientation of a file or PIL image, by which the network sees it
                upright. A video becomes a video.
            save: What to write, of ``"mask"`` (0 and 255), ``"probability"`` (round(255·p)),
                ``"overlay"``, ``"outline"``, ``"cutout"`` and ``"side-by-side"``; several get a
                sub-folder each. Default: probability, or with ``threshold`` the mask.
            threshold: What masks are cut at, a probability; by default what the weights say.
            table: File for a row an image, ``.csv``, ``.json`` or ``.jsonl``: share of the object,
                box, confidence and weights.
            overwrite: Replace outputs that are there; otherwise they are refused.
            resume: Keep a record in ``out_dir``, and leave out images of which it says that they
                are done; these are not yielded.
            shard: Number of this process and of all; each predicts its share, and the last to
                finish writes the table. Implies ``resume``.
            skip_unreadable: Leave unreadable images out, which the table then says; otherwise all
                files are looked at before the first is predicted.
            experts: Fill ``expert_maps``.
            return_routing: Whether to fill ``weights``.

        Raises:
            FileNotFoundError: There is no such file or folder.
            ValueError: The threshold is no probability, a file is unreadable, a folder holds no
                images, outputs exist already, or two would have one name.
        """
        check_threshold(threshold)
        folder = None if out_dir is None else Path(out_dir)
        if save is None:
            save = ("probability",) if threshold is None else ("mask",)
        outputs = Outputs(
            collect(inputs, out_dir=folder, say=shard[0] == 0),
            folder=folder,
            kinds=(save,) if isinstance(save, str) else save,
            table=None if table is None else Path(table),
            overwrite=overwrite,
            resume=resume,
            shard=shard,
        )
        return self.run(
            outputs,
            threshold=threshold,
            skip_unreadable=skip_unreadable,
            experts=experts,
            return_routing=return_routing,
        )

    def run(
        self,
        outputs: Outputs,
        *,
        threshold: float | None = None,
        skip_unreadable: bool = False,
        experts: bool = False,
        return_routing: bool = True,
    ) -> Iterator[Prediction]:
        """Like :meth:`stream`, of inputs and outputs that were settled before."""
        outputs.check(skip_unreadable=skip_unreadable)
        cut = self.threshold if threshold is None else threshold
        settings = self.settings | dict(threshold=cut)
        if outputs.record:
            settings["weights"] = self._fingerprint()
        return _Making(
            self,
            outputs,
            settings,
            threshold=cut,
            skip_unreadable=skip_unreadable,
            experts=experts or "side-by-side" in outputs.kinds,
            weights=return_routing or outputs.notes,
        ).all()

    def _fingerprint(self) -> str:
        """Tells these weights from others."""
        total = 0
        for value in self.model.state_dict().values():
            total = zlib.crc32(value.detach().cpu().flatten().view(torch.uint8).numpy(), total)
        return f"{total:08x}"

    def maps(self, images: list[np.ndarray], *, experts: bool = False) -> list[CODDataSample]:
        """Data samples of RGB images (H, W, 3) uint8 with ``pred_prob`` at their size on the host,
        ``routing``, and with ``experts`` also ``expert_probs``.
        """
        return self._predicted(
            [(to_input(i, self.input_size), i.shape[:2]) for i in images], experts
        )

    @torch.inference_mode()
    def _predicted(
        self, loaded: Sequence[tuple[torch.Tensor, tuple[int, ...]]], experts: bool
    ) -> list[CODDataSample]:
        data = dict(
            inputs=[image for image, _ in loaded],
            data_samples=[CODDataSample(metainfo=dict(ori_shape=shape)) for _, shape in loaded],
        )
        with self._lock:
            before = self.model.evaluate_all_experts
            self.model.evaluate_all_experts = experts
            try:
                samples = self.model(**self.model.data_preprocessor(data), mode="predict")
            finally:
                self.model.evaluate_all_experts = before
        for sample, map_ in zip(samples, _to_host([s.pred_prob for s in samples]), strict=True):
            sample.pred_prob = map_
            if experts:
                names = list(sample.expert_probs)
                others = _to_host(list(sample.expert_probs.values()))
                sample.expert_probs = dict(zip(names, others, strict=True))
        return samples

    def tiled(self, image: np.ndarray, *, experts: bool = False) -> CODDataSample:
        """Like :meth:`maps`, of one image that is larger than a tile.

        Routing and the experts' maps, of the network's size, are those of the whole image.
        """
        assert self.tile is not None
        width, height = self.input_size
        (sample,) = self._predicted([(to_input(image, self.input_size), (height, width))], experts)

        def predict(pieces: list[np.ndarray]) -> list[np.ndarray]:
            return [found.pred_prob.numpy() for found in self.maps(pieces)]

        whole = sample.pred_prob.numpy()
        found = blended(image, self.tile, whole, predict, self.batch_size)
        sample.pred_prob = torch.from_numpy(found)
        return sample


_Read = tuple[np.ndarray | None, torch.Tensor | None, tuple[int, ...], int]
"""The image as stored where it is needed later, the network's input unless tiles are, (H0, W0) of
the image upright, and its EXIF orientation.
"""


@dataclass
class _Unit:
    """An image or a frame on its way: read, predicted, written."""

    item: Item
    frame: int | None
    seconds: float
    read: Future[_Read]


@dataclass
class _Making:
    """One run: reads ahead and writes behind in threads, while the device predicts."""

    inferencer: Inferencer
    outputs: Outputs
    settings: Mapping[str, Any]
    threshold: float
    skip_unreadable: bool
    experts: bool
    weights: bool

    def __post_init__(self):
        self.draws = not {"mask", "probability"}.issuperset(self.outputs.kinds)

    def all(self) -> Iterator[Prediction]:
        """Every prediction, once it is written."""
        # Of large images one at a time is enough for memory.
        size = 1 if self.inferencer.tile else self.inferencer.batch_size
        film = _Films(self.outputs)
        with (
            self.outputs.held(self.settings) as todo,
            ExitStack() as stack,
            ThreadPoolExecutor(THREADS) as pool,
            _Bar(todo, self.outputs.rank == 0) as bar,
        ):
            stack.push(film.leave)
            units, ahead = self._units(todo, pool), deque[_Unit]()
            behind: deque[tuple[_Unit, Prediction, Future[dict]]] = deque()
            while True:
                ahead.extend(islice(units, 2 * size - len(ahead)))
                batch = [ahead.popleft() for _ in range(min(size, len(ahead)))]
                for unit, prediction in self._predict(batch):
                    task = pool.submit(self._write, unit, prediction)
                    behind.append((unit, prediction, task))
                # What is written lags a batch behind, so that the device need not wait for it.
                lag = size if batch and (self.outputs.kinds or self.outputs.notes) else 0
                while len(behind) > lag:
                    yield self._written(*behind.popleft(), film)
                    bar.advance()
                if not batch:
                    break
            film.end()
            self.outputs.finish(self.inferencer.model.expert_names)

    def _units(self, todo: Sequence[Item], pool: ThreadPoolExecutor) -> Iterator[_Unit]:
        for item in todo:
            if not isinstance(item.source, Video):
                yield _Unit(item, None, 0.0, pool.submit(self._load, item))
                continue
            try:
                for number, (frame, seconds) in enumerate(item.source.frames()):
                    still = Item(frame, item.name)
                    yield _Unit(item, number, seconds, pool.submit(self._load, still))
            except UnreadableFile as error:
                self._left_out(item, error)

    def _load(self, item: Item) -> _Read:
        image, orientation = item.read(), item.orientation
        tensor, keep = None, self.draws or isinstance(item.source, np.ndarray)
        seen = upright(image, orientation)
        if not needs_tiles(seen.shape, self.inferencer.tile):
            tensor = to_input(seen, self.inferencer.input_size)
        return image if keep or tensor is None else None, tensor, seen.shape[:2], orientation

    def _left_out(self, item: Item, error: UnreadableFile) -> None:
        if not self.skip_unreadable:
            raise error
        self.outputs.fail(item, error)

    def _predict(self, batch: list[_Unit]) -> Iterator[tuple[_Unit, Prediction]]:
        read: list[tuple[_Unit, _Read]] = []
        for unit in batch:
            try:
                read.append((unit, unit.read.result()))
            except UnreadableFile as error:
                self._left_out(unit.item, error)
        small = [(tensor, shape) for _, (_, tensor, shape, _) in read if tensor is not None]
        inferencer = self.inferencer
        samples: Iterator[CODDataSample] = iter(
            inferencer._predicted(small, self.experts) if small else ()
        )
        for unit, (image, tensor, _, orientation) in read:
            if tensor is not None or image is None:
                sample = next(samples)
            else:
                sample = inferencer.tiled(upright(image, orientation), experts=self.experts)
            maps = sample.expert_probs if self.experts else {}
            yield (
                unit,
                Prediction(
                    as_stored(sample.pred_prob.numpy(), orientation),
                    _weights(sample.routing) if self.weights else {},
                    unit.item.path,
                    self.threshold,
                    unit.frame,
                    {k: as_stored(v.numpy(), orientation) for k, v in maps.items()},
                    image if self.draws or not isinstance(unit.item.source, Path) else None,
                ),
            )

    def _write(self, unit: _Unit, prediction: Prediction) -> dict[str, Any]:
        """Writes an image's pictures; gives its row of the table."""
        if unit.frame is None:
            self.outputs.write(unit.item, prediction)
        return dict(image=str(unit.item), **prediction.row()) if self.outputs.notes else {}

    def _written(
        self, unit: _Unit, prediction: Prediction, task: Future[dict], film: _Films
    ) -> Prediction:
        row = task.result()
        if unit.frame is None:
            film.end()
            self.outputs.add(unit.item, [row])
        else:
            film.add(unit, prediction, row)
        if isinstance(unit.item.source, Path):
            prediction.image = None  # it can be read again; many would fill memory
        return prediction


class _Films:
    """The video that is being written, if one is; frames come in order."""

    def __init__(self, outputs: Outputs):
        self.outputs = outputs
        self.item: Item | None = None

    def add(self, unit: _Unit, prediction: Prediction, row: dict) -> None:
        """Writes a frame; that of another video ends the one before."""
        if unit.item is not self.item:
            self.end()
            self.item, self.rows, self.stack = unit.item, [], ExitStack()
            self.write = self.stack.enter_context(self.outputs.film(unit.item))
        self.write(prediction, unit.seconds)
        self.rows.append(row)

    def end(self) -> None:
        """Has the files appear."""
        if self.item is not None:
            item, self.item = self.item, None
            self.stack.close()
            self.outputs.add(item, self.rows)

    def leave(self, *error) -> None:
        """Drops a video that was not finished."""
        if self.item is not None:
            self.stack.__exit__(*(error if error[0] else (GeneratorExit, GeneratorExit(), None)))


class _Bar:
    """A progress bar with the time left on standard error, if that is a terminal and the work takes
    longer than :data:`PATIENCE`.
    """

    def __init__(self, todo: Sequence[Item], wanted: bool):
        self.console = Console(stderr=True, quiet=is_quiet())
        known = [i.source.length() if isinstance(i.source, Video) else 1 for i in todo]
        self.total = None if None in known else sum(n for n in known if n)
        time_left = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), *time_left)
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.wanted = wanted and self.console.is_interactive and not is_quiet()
        self.done, self.started = 0, time.monotonic()

    def __enter__(self) -> _Bar:
        self.task = self.bar.add_task("", total=self.total)
        return self

    def advance(self) -> None:
        """Counts one more."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)
        if not self.wanted:
            return
        each = (time.monotonic() - self.started) / self.done
        if self.total is None or each * (self.total - self.done) > PATIENCE:
            self.bar.start()
            self.wanted = False

    def __exit__(self, *error) -> None:
        if self.bar.live.is_started:  # rich ends a bar that was never begun with an empty line
            self.bar.stop()


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


def _weights(routing: dict) -> dict[str, float]:
    names = [routing["expert_names"][i] for i in routing["indices"].tolist()]
    weights = dict(zip(names, routing["weights"].tolist(), strict=True))
    return dict(sorted(weights.items(), key=lambda item: -item[1]))


def check_threshold(threshold: float | None) -> None:
    """Raises ValueError unless it is a probability."""
    if threshold is None or (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        return
    raise ValueError(
        f"threshold={threshold!r}; masks are cut at a probability, 0 to 1 (a value of an 8-bit "
        "map is that over 255)"
    )

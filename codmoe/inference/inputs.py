"""Inputs of a prediction: image files, folders of them, arrays, videos and cameras."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from codmoe.datasets.layouts import IMAGE_EXTENSIONS, LITTER
from codmoe.datasets.reading import (
    UnreadableFile,
    in_eight_bits,
    is_complete,
    orientation_of,
    read_image,
    too_large,
)
from codmoe.interruption import interruption
from codmoe.machine import available_memory
from codmoe.messages import listed, note, printable

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
CAMERA = re.compile(r"camera:(\d+)$")
RECORD = ".codmoe-predict"
"""Folder in that of the outputs that says what was made how; with it a run goes on."""
BYTES_A_PIXEL = 32
"""Host memory that an image takes while it is predicted in tiles."""
Picture = str | Path | np.ndarray | Image.Image


@dataclass(frozen=True)
class Video:
    """A video file, or a camera.

    Args:
        source: The file, or the camera's number.
    """

    source: Path | int

    def __str__(self) -> str:
        return f"camera:{self.source}" if isinstance(self.source, int) else str(self.source)

    def open(self) -> cv2.VideoCapture:
        """The opened video.

        Raises:
            UnreadableFile: OpenCV cannot read it; a ValueError.
        """
        quiet = cv2.utils.logging.setLogLevel(0)
        try:
            if live := isinstance(self.source, int):
                capture = cv2.VideoCapture(self.source)
            else:  # absolute, for FFmpeg takes what stands before a colon for a protocol
                capture = cv2.VideoCapture(os.path.abspath(self.source))
        finally:
            cv2.utils.logging.setLogLevel(quiet)
        if not capture.isOpened():
            remedy = "is there one, and may you use it?" if live else "convert it with ffmpeg"
            raise UnreadableFile(f"{self} cannot be opened as a video; {remedy}")
        return capture

    def rate(self) -> float:
        """Frames a second; 25 where the video does not say, and for a camera, which can be open but
        once and whose frames stay as long as it took.
        """
        if isinstance(self.source, int):
            return 25.0
        capture = self.open()
        found = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        # As a fraction of 16 bits, which is what MPEG-4 holds.
        return round(found, 3 if found < 65 else 1) if 0 < found < 1000 else 25.0

    def length(self) -> int | None:
        """Number of frames as the file says it; None for a camera, and where it cannot be read."""
        if isinstance(self.source, int):
            return None
        with suppress(UnreadableFile):
            capture = self.open()
            found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            capture.release()
            return found if found > 0 else None
        return None

    def frames(self) -> Iterator[tuple[np.ndarray, float]]:
        """RGB frames, turned upright, and the time in seconds when a camera took each; a camera
        goes on until the process is interrupted.

        Raises:
            UnreadableFile: There are none.
        """
        capture, started, count = self.open(), time.monotonic(), 0
        try:
            while not (isinstance(self.source, int) and interruption.signum):
                read, frame = capture.read()
                if not read and not count:
                    raise UnreadableFile(f"{self} has no frames that OpenCV can read")
                if not read:
                    return
                count += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), time.monotonic() - started
        finally:
            capture.release()


@dataclass(frozen=True)
class Item:
    """One input, and the path of its outputs below their folder, without suffix.

    Args:
        source: A file, an RGB array, or a video.
        name: With ``/`` between folders.
        turned: EXIF orientation of an array, as it was a PIL image.
    """

    source: Path | np.ndarray | Video
    name: str
    turned: int = 1

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        source = self.source.source if isinstance(self.source, Video) else self.source
        return source if isinstance(source, Path) else None

    @property
    def orientation(self) -> int:
        """EXIF orientation: 1 to 8, and 1, as stored, where there is none."""
        return orientation_of(self.source) if isinstance(self.source, Path) else self.turned

    @property
    def size(self) -> int | None:
        """Bytes of the file, by which a later run knows it: a copy elsewhere has as many."""
        with suppress(OSError):
            return None if self.path is None else self.path.stat().st_size
        return None

    def __str__(self) -> str:
        return self.name if isinstance(self.source, np.ndarray) else str(self.source)

    def read(self) -> np.ndarray:
        """RGB, (H, W, 3) uint8.

        Raises:
            UnreadableFile: It is no readable image; a ValueError.
            ValueError: It is a video.
        """
        if isinstance(self.source, Video):
            raise ValueError(f"{self} is a video; images are needed here")
        return self.source if isinstance(self.source, np.ndarray) else read_image(str(self.source))


def collect(inputs: Any, *, out_dir: Path | None = None, say: bool = True) -> list[Item]:
    """Everything that :class:`Inferencer` is given, folders with all that is below them.

    In a folder come its images in the order of their names, then its sub-folders; links to folders
    are not followed, and ``out_dir`` and the outputs of earlier predictions are left out. Videos
    are taken where they are named.

    Args:
        inputs: See :class:`Inferencer`; a list that this function returned is taken as it is.
        out_dir: Where outputs go.
        say: Count on standard error what is skipped.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no images, or an array is no image.
    """
    if isinstance(inputs, (str, Path, np.ndarray, Image.Image)):
        inputs = [inputs]
    items: list[Item] = []
    skipped: list[str] = []
    made: list[str] = []
    for index, given in enumerate(inputs):
        folder = Path(given).expanduser() if isinstance(given, (str, Path)) else None
        if folder is None or not folder.is_dir():
            items.append(given if isinstance(given, Item) else _item(given, index))
            continue
        found, others, outputs = _walk(folder, out_dir)
        made += outputs
        if not found:
            held = f"it has {listed(others)}" if others else "it is empty"
            held = f"it has outputs of predictions: {listed(outputs)}" if outputs else held
            raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_EXTENSIONS)}); {held}")
        items += found
        skipped += others
    if skipped and say:
        named = printable(listed(skipped))
        note(f"{len(skipped):,} skipped, since they are no image files: {named}")
    if made and say:
        note(
            f"left out, since they hold outputs of predictions: {printable(listed(made))}; name "
            "such a folder itself to predict on what is in it"
        )
    if not items:
        raise ValueError("inputs is empty; give a file, a folder, or a list of files or arrays")
    return items


def _walk(folder: Path, out_dir: Path | None) -> tuple[list[Item], list[str], list[str]]:
    """Images below a folder, the names of what else is there, and sub-folders of outputs."""
    found, others, outputs = [], [], []
    root, avoided = os.fspath(folder), out_dir and os.path.realpath(out_dir)
    if avoided == os.path.realpath(root):
        raise ValueError(
            f"out_dir={out_dir} is the folder of the images, where outputs would be taken for "
            "images the next time; give another"
        )

    def failed(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(root, onerror=failed):
        below = os.path.relpath(place, root)
        others += [d for d in folders if os.path.islink(os.path.join(place, d))]
        folders[:] = sorted(
            d
            for d in folders
            if not LITTER.match(d)
            and not (avoided and os.path.realpath(os.path.join(place, d)) == avoided)
        )
        earlier = [d for d in folders if os.path.isdir(os.path.join(place, d, RECORD))]
        outputs += [os.path.join(place, d) for d in earlier]
        folders[:] = [d for d in folders if d not in earlier]
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if LITTER.match(file):
                continue
            if suffix.lower() in IMAGE_EXTENSIONS:
                name = stem if below == "." else f"{below.replace(os.sep, '/')}/{stem}"
                found.append(Item(Path(place, file), name))
            else:
                others.append(file)
    return found, sorted(others), outputs


def _item(given: Any, index: int) -> Item:
    if isinstance(given, str) and CAMERA.match(given):
        number = int(given.partition(":")[2])
        return Item(Video(number), f"camera{number}")
    if isinstance(given, (str, Path)):
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file or folder; give one that is there")
        return Item(Video(path) if path.suffix.lower() in VIDEOS else path, path.stem)
    turned = 1
    if isinstance(given, Image.Image):
        given, turned = _of_pil(given), orientation_of(given)
    if not isinstance(given, np.ndarray):
        raise ValueError(f"inputs holds a {type(given).__name__}; give paths, arrays or PIL images")
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
        raise ValueError(f"an array {given.shape} of {given.dtype} is not (H, W, 3) uint8 RGB")
    return Item(np.ascontiguousarray(given), f"{index:04d}", turned)


def _of_pil(image: Image.Image) -> np.ndarray:
    """RGB as the file would be read: Pillow cuts off what is above 255."""
    if image.mode[0] not in "IF":
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    if values.dtype.kind == "f" or (values.size and not 0 <= values.min() <= values.max() < 65536):
        raise ValueError(f"a PIL image of mode {image.mode!r} holds no values of 8 or 16 bits")
    return cv2.cvtColor(in_eight_bits(values.astype(np.uint16)), cv2.COLOR_GRAY2RGB)


def check_readable(items: Sequence[Item]) -> None:
    """Looks at the beginning and end of every file.

    Raises:
        ValueError: Some are unreadable, or larger than is read.
    """
    Image.init()  # loads PIL's plugins, which is not safe in several threads at once
    for item in items:
        if isinstance(item.source, Video):
            next(item.source.frames(), None)
    files = [item.source for item in items if isinstance(item.source, Path)]
    with ThreadPoolExecutor(8) as pool:
        faults = [fault for fault in pool.map(_fault, files) if fault]
    if faults:
        raise ValueError(
            f"{len(faults):,} of {len(files):,} images cannot be read: "
            f"{listed(faults, separator='; ')}; save them again, take them out of what is given, "
            "or leave them out by --skip-unreadable"
        )


def _fault(path: Path) -> str:
    """Why a file cannot be read, or ""; all of it is read only where the look of it is odd."""
    try:
        if not _looks_well(path):
            read_image(str(path))
    except UnreadableFile as error:
        return str(error)
    return ""


def _looks_well(path: Path) -> bool:
    """By header and end; TIFFs, and files of several pictures, have to be read to know."""
    try:
        with Image.open(path) as image:
            pixels = image.width * image.height
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            plain = image.format != "TIFF" and frames == 1
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(-8, 2)
            ends = start + file.read(8)
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except (OSError, SyntaxError, ValueError):
        return False
    if Image.MAX_IMAGE_PIXELS is None:
        check_memory(path, pixels)
    return plain and (is_complete(ends) or is_complete(path.read_bytes()))


def check_memory(path: Path, pixels: int) -> None:
    """Raises ValueError if an image is more than OpenCV reads, or memory holds."""
    most = min(2**30, (available_memory() or 2**50) // BYTES_A_PIXEL)
    if pixels > most:
        raise ValueError(
            f"{path} has {pixels:,} pixels, and memory and OpenCV allow {most:,} here; scale it "
            "down, or cut it into pieces"
        )

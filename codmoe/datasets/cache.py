"""Keeps decoded samples in one block of memory that all worker processes share."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.logging import print_log
from PIL import Image

from codmoe.datasets.layouts import expanded
from codmoe.datasets.reading import read_pair
from codmoe.datasets.transforms.loading import pair_results
from codmoe.machine import available_cores
from codmoe.messages import suggest

try:
    import fcntl
except ImportError:  # Windows: two processes that build at once both build
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
SUFFIX = ".codcache"


class _Slot(NamedTuple):
    """Place of a sample: image (height, width, 3), mask (height, width), and, if those are reduced,
    one bit for each pixel of the mask as it was, (full_height, full_width).
    """

    start: int
    height: int
    width: int
    full_height: int
    full_width: int

    @property
    def reduced(self) -> bool:
        return (self.height, self.width) != (self.full_height, self.full_width)

    @property
    def bits(self) -> int:
        """Bytes of the packed mask."""
        return -(-self.full_height * self.full_width // 8) if self.reduced else 0

    @property
    def stop(self) -> int:
        return self.start + 4 * self.height * self.width + self.bits


class SampleCache:
    """Decoded images and masks, once for all workers of a process or, in a file, of a machine.

    Without ``dir`` they lie in RAM: one copy for a process and the workers it forks (a worker that
    is spawned, as on Windows and macOS, gets its own). With ``dir`` they lie in a memory-mapped
    file: one copy for all workers, all ranks and all later runs, in the page cache as far as RAM
    allows. The file is named by paths, times of change and sizes of all files in it, so a changed
    file is never served stale; it appears whole or not at all. Files that cannot be read are left
    out, and meet their error where they are used.

    Args:
        dir: Folder of the cache file; it is made if need be. Files of data that have changed since
            stay there until they are deleted.
        max_side: Images whose longer side is above this are reduced to it before they are kept,
            masks along with them. The mask at original resolution is kept besides: what metrics
            are computed against is the same with and without cache.

    Raises:
        ValueError: ``max_side`` is too small.
    """

    def __init__(self, dir: str | os.PathLike | None = None, max_side: int | None = None) -> None:
        if max_side is not None and max_side < 32:
            raise ValueError(f"cache.max_side={max_side} is too small; use 32 or more")
        self.dir = None if dir is None else expanded(dir)
        self.max_side = max_side
        self._slots: dict[str, _Slot] = {}
        self._data = np.zeros(0, np.uint8)
        self._file: Path | None = None

    @classmethod
    def of(cls, cache: bool | Mapping[str, Any] | None) -> SampleCache | None:
        """The cache that a config's ``cache=`` asks for: True, False, or the arguments as a dict.

        Raises:
            ValueError: It is something else, or an argument is unknown.
        """
        if cache is None or isinstance(cache, bool):
            return cls() if cache else None
        if not isinstance(cache, Mapping):
            raise ValueError(f"cache={cache!r}; it must be True, False or dict(dir=, max_side=)")
        for key in cache:
            if key not in ("dir", "max_side"):
                raise ValueError(f"cache has no key {key!r}; {suggest(key, ('dir', 'max_side'))}")
        return cls(**cache)

    def fill(self, pairs: Sequence[tuple[str, str]], name: str = "cache") -> None:
        """Decodes the pairs (image file, mask file), or opens the file that holds them.

        To be called before workers start: what a worker decodes dies with it.

        Raises:
            ValueError: The file cannot be written.
        """
        with ThreadPoolExecutor(min(8, available_cores())) as pool:
            if self.dir is not None:
                file = self.dir / f"{self._key(pairs)}{SUFFIX}"
                if not file.is_file():  # it appears whole: no lock is needed to read it
                    self._build_alone(file, pairs, pool, name)
                self._open(file, pairs)
                return
            self._lay_out(pairs, pool)
            size = self._size()
            print_log(f"{name}: {len(self._slots):,} pairs in RAM, {size / 1e9:.2f} GB", "current")
            # Anonymous and shared: forked workers see it, and /dev/shm need not hold it.
            self._data = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
            self._decode(pairs, pool, self._data)
            self._data.flags.writeable = False

    def results(self, image_path: str) -> dict | None:
        """The keys that transforms work on, as copies, or None if the sample is not held."""
        slot = self._slots.get(image_path)
        if slot is None:
            return None
        image, mask, bits = self._views(slot)
        if not slot.reduced:
            return pair_results(image.copy(), mask.copy())
        results = pair_results(image.copy(), mask)
        shape = (slot.full_height, slot.full_width)
        results["gt_mask"] = np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape)
        results["ori_shape"] = shape
        return results

    def _views(self, slot: _Slot, data: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        data = self._data if data is None else data
        shape, pixels = (slot.height, slot.width), slot.height * slot.width
        image = data[slot.start : slot.start + 3 * pixels].reshape(*shape, 3)
        mask = data[slot.start + 3 * pixels : slot.start + 4 * pixels].reshape(shape)
        return image, mask, data[slot.start + 4 * pixels : slot.stop]

    def _size(self) -> int:
        return max((slot.stop for slot in self._slots.values()), default=0)

    def _key(self, pairs: Sequence[tuple[str, str]]) -> str:
        # Another OpenCV may decode a JPEG otherwise.
        told = [FORMAT, cv2.__version__, self.max_side]
        for path in (path for pair in pairs for path in pair):
            try:
                stat = os.stat(path)
                told.append([os.path.abspath(path), stat.st_mtime_ns, stat.st_size])
            except OSError:
                told.append([os.path.abspath(path), None, None])
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def _lay_out(self, pairs: Sequence[tuple[str, str]], pool: ThreadPoolExecutor) -> None:
        Image.init()  # loads PIL's plugins, which is not safe in several threads at once
        start, self._slots = 0, {}
        for (path, _), size in zip(pairs, pool.map(_header, (p for p, _ in pairs)), strict=True):
            if size is not None:
                height, width = size
                shrink = min(1.0, (self.max_side or max(size)) / max(size))
                reduced = max(round(height * shrink), 1), max(round(width * shrink), 1)
                self._slots[path] = _Slot(start, *reduced, height, width)
                start = self._slots[path].stop

    def _decode(
        self, pairs: Sequence[tuple[str, str]], pool: ThreadPoolExecutor, data: np.ndarray
    ) -> None:
        def one(pair: tuple[str, str]) -> str | None:
            slot = self._slots.get(pair[0])
            if slot is None:
                return None
            try:
                image, mask = read_pair(*pair)
            except (ValueError, OSError):
                return pair[0]
            if image.shape[:2] != (slot.full_height, slot.full_width):
                return pair[0]  # changed while it was read
            to_image, to_mask, to_bits = self._views(slot, data)
            if slot.reduced:
                to_bits[:] = np.packbits(mask)
                size = (slot.width, slot.height)
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                mask = cv2.resize(mask * 255, size, interpolation=cv2.INTER_AREA) >= 128
            to_image[:], to_mask[:] = image, mask
            return None

        for bad in pool.map(one, pairs):
            if bad is not None:
                del self._slots[bad]

    def _build_alone(
        self, path: Path, pairs: Sequence[tuple[str, str]], pool: ThreadPoolExecutor, name: str
    ) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.parent) as alone:
                if not path.is_file():
                    if alone:
                        for left in path.parent.glob(f".{path.stem}.*"):
                            left.unlink()  # of a process that was killed
                    self._build(path, pairs, pool, name)
        except OSError as error:
            raise ValueError(
                f"cache.dir {self.dir} cannot be written: {error.strerror or error}; free some "
                "room, name another folder, or set cache=False"
            ) from error

    def _build(
        self, path: Path, pairs: Sequence[tuple[str, str]], pool: ThreadPoolExecutor, name: str
    ) -> None:
        self._lay_out(pairs, pool)
        size = max(self._size(), 1)
        print_log(f"{name}: writing {size / 1e9:.2f} GB to {path}", "current")
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}")
        try:
            with open(temporary, "w+b") as file:
                if hasattr(os, "posix_fallocate"):
                    # A full disk is an error here; later, in a mapped file, it kills the process.
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                data = np.memmap(file, np.uint8, "r+", shape=(size,))
                self._decode(pairs, pool, data)
                data.flush()
                del data
                index = json.dumps([self._slots.get(image) for image, _ in pairs]).encode()
                file.seek(size)
                file.write(index + len(index).to_bytes(8, "little"))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _open(self, path: Path, pairs: Sequence[tuple[str, str]]) -> None:
        self._map(path)
        length = int.from_bytes(self._data[-8:].tobytes(), "little")
        rows = json.loads(self._data[-8 - length : -8].tobytes())
        # The order of the pairs is in the file's name.
        self._slots = {
            image: _Slot(*row) for (image, _), row in zip(pairs, rows, strict=True) if row
        }
        print_log(f"cache: {len(self._slots):,} pairs in {path}", "current")

    def _map(self, path: Path) -> None:
        self._file = path
        # Without np.memmap's class, whose every slice costs as much as the copy of a small image.
        self._data = np.asarray(np.memmap(path, np.uint8, "r"))

    def __deepcopy__(self, memo: dict) -> SampleCache:
        """The cache itself: a subset of the data set reads the same block."""
        return self

    def __getstate__(self) -> dict:
        """State without the block of a file, which a spawned worker maps anew."""
        state = self.__dict__.copy()
        if self._file is not None:
            del state["_data"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._map(self._file)


def _header(path: str) -> tuple[int, int] | None:
    """Height and width by the file's header, or None."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock, so that of several ranks one builds; False where none can be had."""
    if fcntl is None:
        yield False
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except OSError:  # a network file system without locks
            held = False
        yield held

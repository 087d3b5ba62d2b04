"""Reads images as RGB and masks as {0, 1}, whatever they are stored as, or refuses the file."""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from codmoe.files import replacing
from codmoe.messages import listed

# Values this near to black or white, of 255, are their ringing or rim; those between are soft.
MARGIN = 16
# VOC's palette has 21 classes and a border: a mask of no more values may be one of class indices.
CLASSES = 24
# A coloured picture of more colours has rims or JPEG's noise.
COLOURS = 64
VOID = (192, 224, 224)  # VOC's border, in OpenCV's order
# A larger share of pixels neither dark nor bright is worth a word, and above that it is no mask.
SOFT, NO_MASK, INNER = 0.02, 0.5, 1 / 3


class UnreadableFile(ValueError):
    """An image or mask file that cannot be used; the message starts with its path.

    Apart from other ``ValueError``, because in training it may be replaced by another sample (see
    :class:`TolerantDataset`), which a mistake in a config must not be.
    """

    def __init__(self, message: str) -> None:
        # torch raises what a loader's worker raised anew, with a traceback as its message, of which
        # the last line is the sentence meant.
        super().__init__(message.rsplit("UnreadableFile: ", 1)[-1].strip())


class Mask(NamedTuple):
    """A mask and how it was stored.

    Args:
        pixels: (H, W) uint8 in {0, 1}.
        traits: Of ``zero_one``, ``levels`` (0 and one value that is neither 1 nor white),
            ``colours``, ``classes`` (more than one colour), ``alpha``, ``soft``.
    """

    pixels: np.ndarray
    traits: frozenset[str] = frozenset()


def too_large(path: str | Path) -> UnreadableFile:
    """The error of an image above Pillow's limit, at which it takes a file for an attack."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return UnreadableFile(
        f"{path} has more than {most:,} pixels; scale it down, or cut it into pieces (predict with "
        "--tile; in Python with tile=, and PIL.Image.MAX_IMAGE_PIXELS = None)"
    )


class _NoMask(ValueError):
    """What keeps the pixels from being a mask."""


def is_complete(data: bytes | memoryview) -> bool:
    """Whether an encoded image ends as its format says; older OpenCV half-decodes others.

    Args:
        data: The file's bytes; its first 8 and last 8 are enough for JPEG and PNG.
    """
    start, end = bytes(data[:8]), bytes(data[-8:])
    if start.startswith(b"\xff\xd8") and end.endswith(b"\xff\xd9"):
        return True
    if start.startswith(b"\x89PNG") and end == b"IEND\xaeB`\x82":
        return True
    if len(data) <= 16:
        return False
    # Another format, or bytes behind the end, which is harmless: only decoding tells.
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError:  # such as a TIFF of float64
        _, page = next(_tiff_pages(data), (0, None))
        if page is None:
            return False
        starts, counts = page.get(273) or page.get(324) or (), page.get(279) or page.get(325) or ()
        ends = [start + count for start, count in zip(starts, counts, strict=False)]
        return bool(ends) and max(ends) <= len(data)
    except Exception:
        # Of damaged files Pillow's plugins raise what they stumble over: OSError and SyntaxError,
        # but struct.error, IndexError or DecompressionBombError too.
        return False
    return True


def has_plausible_header(data: bytes | memoryview) -> bool:
    """Whether the sizes that an encoded image claims can be true, told without decoding.

    Raises:
        DecompressionBombError: It claims more than twice ``Image.MAX_IMAGE_PIXELS``.

    OpenCV allocates what a damaged file asks for, 4 GB were seen, before it finds the damage.
    """
    if bytes(data[:4]) == b"\x89PNG":
        if not _has_whole_chunks(data):
            return False
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        return True
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pixels that a byte can stand for. Measured on even areas: JPEG 85, TIFF 16,000
            # (group 4), WebP 24,000 (lossless).
            most = 1000 if image.format in ("JPEG", "MPO", "BMP") else 40_000
            return image.width * image.height <= most * len(data)
    except Image.DecompressionBombError:
        if 1000 * len(data) < 2 * (Image.MAX_IMAGE_PIXELS or 0):
            return False
        raise
    except Exception:
        return True  # not for Pillow to tell; decoding will


def _has_whole_chunks(data: bytes | memoryview) -> bool:
    """Whether a PNG's chunks follow one another up to its end, the first of them undamaged."""
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return False
    start = 8
    while start + 12 <= len(data):
        if bytes(data[start + 4 : start + 8]) == b"IEND":
            return True
        start += 12 + int.from_bytes(data[start : start + 4], "big")
    return False


def decode(path: str) -> np.ndarray:
    """Pixels as they are stored: (H, W), or (H, W, 3 or 4) in OpenCV's order of channels.

    The EXIF orientation is ignored, in images as in masks; prediction asks :func:`orientation_of`,
    and maps carry it on (:func:`write_map`).

    Raises:
        UnreadableFile: The file is missing, damaged, of a form that is not read, or holds several
            pictures.
    """
    try:
        # Read by numpy: cv2.imread knows only ASCII paths on some systems.
        data = np.fromfile(path, np.uint8)
        readable = data.size and has_plausible_header(data.data)
        if readable and _is_animated(data.data):
            raise _several(path)
        pixels = _tiff(path, data) if readable else None
        if readable and pixels is None:
            pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}") from error
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except (cv2.error, MemoryError) as error:
        # Damaged headers promise impossible sizes.
        raise UnreadableFile(f"{path} is unreadable: OpenCV cannot decode it") from error
    if pixels is None or not is_complete(data.data):
        raise UnreadableFile(f"{path} is unreadable: {_why(bytes(data[:64]))}")
    return pixels


def _why(start: bytes) -> str:
    """Why a file that begins so is no image."""
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "it is a photo in HEIC; convert it to JPEG or PNG"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the file itself (git lfs pull fetches that)"
    if start.lstrip().startswith(b"<"):
        return "it is a page of HTML or XML, as failed downloads leave it"
    return "truncated or not an image" if start else "the file is empty"


def _several(path: str) -> UnreadableFile:
    return UnreadableFile(
        f"{path} holds several pictures (frames or pages); save the one that is meant by itself"
    )


def _is_animated(data: memoryview) -> bool:
    start = bytes(data[:65536])
    if start.startswith(b"\x89PNG"):
        count = start.find(b"acTL", 0, start.find(b"IDAT"))
        return count > 0 and int.from_bytes(start[count + 4 : count + 8], "big") > 1
    if start.startswith(b"GIF8"):
        with suppress(Exception), Image.open(io.BytesIO(data)) as image:
            return getattr(image, "n_frames", 1) > 1
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and bool(start[20] & 2)


def _tiff_pages(data: bytes | memoryview) -> Iterator[tuple[int, ImageFileDirectory_v2]]:
    """Place and tags of a TIFF's pictures, but for previews and masks; none if it is damaged."""
    if bytes(data[:4]) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return
    with suppress(Exception), io.BytesIO(data) as file:
        start = ImageFileDirectory_v2(bytes(data[: 16 if 43 in data[2:4] else 8])).next
        for _ in range(16):
            page = ImageFileDirectory_v2(bytes(data[: 16 if 43 in data[2:4] else 8]))
            if file.seek(start) + 2 > len(data):
                return
            page.load(file)
            if not page.get(254, 0) & 5:
                yield start, page
            start, before = page.next, start
            if start in (0, before):
                return


# Bits of unsigned, signed and float values, as OpenCV reads them.
_TIFF_VALUES = {1: (1, 2, 4, 8, 10, 12, 14, 16), 2: (8, 16, 32), 3: (32, 64)}


def _tiff(path: str, data: np.ndarray) -> np.ndarray | None:
    """Pixels of a TIFF that OpenCV misreads; None of others.

    It turns the picture as the file's orientation says, knows no 32 bits without sign, drops the
    alpha of grey and darkens under it.
    """
    pages = list(itertools.islice(_tiff_pages(data.data), 2))
    if not pages:
        return None
    if len(pages) > 1:
        raise _several(path)
    start, tags = pages[0]
    try:
        channels, bits, kind = (int(np.max(tags.get(tag, 1))) for tag in (277, 258, 339))
    except Exception:
        return None  # damaged; decoding will tell
    _ignore_orientation(data, start)
    mixed = channels in (2, 4) and bits == 8 and tags.get(262) != 5  # 5: CMYK
    if mixed or (channels, bits, kind) == (1, 32, 1):
        with suppress(Exception), Image.open(io.BytesIO(data.data)) as image:
            if image.mode in ("LA", "RGBA"):
                return cv2.cvtColor(np.asarray(image.convert("RGBA")), cv2.COLOR_RGBA2BGRA)
            if image.mode == "I":
                return np.asarray(image)
    if channels not in (1, 3, 4):
        raise UnreadableFile(
            f"{path} has {channels} channels; expected 1 (grey), 3 (RGB), 4 (RGB and alpha), or 2 "
            "(grey and alpha) of 8 bits"
        )
    if bits not in _TIFF_VALUES.get(kind, ()):
        raise UnreadableFile(
            f"{path} is a TIFF of {bits}-bit {_KINDS.get(kind, 'complex')} values, which are not "
            "read; save it in 8 or 16 bits"
        )
    return None


_KINDS = {1: "unsigned", 2: "signed", 3: "float"}


def _ignore_orientation(data: np.ndarray, start: int) -> None:
    """Sets the orientation in a TIFF's first directory to the usual one."""
    order: Literal["little", "big"] = "little" if data[0] == ord("I") else "big"
    head, size = (8, 20) if 43 in data[2:4] else (2, 12)
    count = int.from_bytes(data[start : start + head].tobytes(), order)
    for entry in range(start + head, start + head + count * size, size):
        if data[entry : entry + 2].tobytes() == (274).to_bytes(2, order):
            value = entry + size - (8 if head == 8 else 4)
            data[value : value + 2] = np.frombuffer((1).to_bytes(2, order), np.uint8)


def read_image(path: str) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8.

    Grey becomes three equal channels, alpha is dropped, 16 bits are scaled to 8 unless no value is
    above 255.

    Raises:
        UnreadableFile: The file is not a readable image; a ValueError, as all below.
    """
    pixels = decode(path)
    if pixels.dtype == np.uint16:
        pixels = in_eight_bits(pixels)
    if pixels.dtype != np.uint8:
        raise UnreadableFile(f"{path} holds {pixels.dtype} values; expected 8 or 16 bits a channel")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    alpha = pixels.shape[2] == 4
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if alpha else cv2.COLOR_BGR2RGB)


def in_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 as uint8: scaled, or as they are if no value is above 255."""
    return cv2.convertScaleAbs(pixels, alpha=1 / 257 if pixels.max() > 255 else 1)


def read_mask(path: str) -> Mask:
    """The one decision what is object, for training, evaluation and the doctor.

    Of 0 and one other value, whatever it is, the other is object; so is every colour beside black.
    Of more greys those above 128 of 255 are object, as PySODMetrics has it, if the others are the
    rim or the ringing of two levels. A mask may lie in the alpha channel.

    Raises:
        UnreadableFile: The file is unreadable or, by this rule, not two-valued: class indices, a
            border that is neither, one value that is neither black nor white, NaN, a photograph.
    """
    pixels = decode(path)
    try:
        if path.lower().endswith((".jpg", ".jpeg")) and 0 < pixels.max() <= MARGIN:
            raise _NoMask(f"is a JPEG of values up to {pixels.max()}, and its noise is as large")
        return _of_channels(pixels, path)
    except _NoMask as error:
        raise UnreadableFile(
            f"{path} {error}; a mask is 0 and one other value, or black and colours"
        ) from None


def _of_channels(pixels: np.ndarray, path: str) -> Mask:
    if pixels.ndim == 2:
        return _of_greys(pixels)
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if not alpha.size or _is_even(alpha):
        return _of_colours(colours, path)
    see_through = _of_greys(alpha[..., 0])
    if _is_even(colours):
        return see_through._replace(traits=frozenset(["alpha"]))
    try:
        drawn = _of_colours(colours, path)
    except _NoMask:  # a photograph, cut out
        return see_through._replace(traits=frozenset(["alpha"]))
    either = np.count_nonzero(drawn.pixels | see_through.pixels)
    if np.count_nonzero(drawn.pixels ^ see_through.pixels) > 0.05 * either:
        raise _NoMask("has one mask in its colours and another in its alpha channel")
    return drawn


def _is_even(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[:1, :1]).all())


def _of_colours(pixels: np.ndarray, path: str) -> Mask:
    if _is_even(pixels):
        with Image.open(path) as image:  # a palette that paints all indices alike
            if image.mode == "P":
                return _of_greys(np.asarray(image))
    values = pixels.max(axis=2)
    if (pixels == pixels[..., :1]).all():
        return _of_greys(values)
    if pixels.dtype != np.uint8:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / max(float(values.max()), 255.0))
        values = pixels.max(axis=2)
    words = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, counts = np.unique(words, return_counts=True)
    if len(found) == 2 and found[0] == 0:
        return Mask((values > 0).astype(np.uint8), frozenset(["colours"]))
    if np.ptp(pixels, axis=2).max() <= MARGIN < values.max():  # greys that compression tinted
        values = np.where(values <= MARGIN // 2, 0, values)
        return _of_greys(np.where(values >= 255 - MARGIN // 2, 255, values).astype(np.uint8))
    if len(found) > COLOURS:
        mask = _of_greys(values)
        return mask._replace(traits=mask.traits | {"colours"})
    if found[0] != 0:
        raise _NoMask(f"has {len(found)} colours, none of which is black, the background")
    if np.isin(VOID[0] << 16 | VOID[1] << 8 | VOID[2], found):
        raise _NoMask("has VOC's border (224, 224, 192), which is neither object nor background")
    # Darker ones are rims: the darkest of VOC's palette has a channel of 32.
    dark = (values > 0) & (values <= MARGIN)
    if np.count_nonzero(dark & _is_flat(words.astype(np.float32))) > 4:
        raise _NoMask("has areas of colours that are all but black beside brighter ones")
    several = np.count_nonzero(counts[1:] > max(values.size // 1000, 1)) > 1
    return Mask(
        (values > MARGIN).astype(np.uint8),
        frozenset(["colours", "classes"] if several else ["colours"]),
    )


def _of_greys(values: np.ndarray) -> Mask:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _NoMask("holds NaN or infinite values")
    values = np.ascontiguousarray(values)
    levels = (
        np.flatnonzero(cv2.calcHist([values], [0], None, [256], [0, 256]))
        if values.dtype == np.uint8
        else np.unique(values)
    )
    low, top = levels[0].item(), levels[-1].item()
    white = next((w for w in (1, 255, 65535) if 1 - MARGIN / 255 <= top / w <= 1), None)
    if low < 0:
        raise _NoMask(f"holds values from {low:g} to {top:g}")
    if len(levels) == 1:
        if top not in (0, 1, 255, 65535):
            raise _NoMask(f"has the value {top:g} everywhere")
        return Mask((values > 0).astype(np.uint8), frozenset(["zero_one"] * (top == 1)))
    if len(levels) == 2 and low == 0:
        trait = "levels" if white is None else "zero_one" if white == top == 1 else ""
        return Mask((values > 0).astype(np.uint8), frozenset([trait] if trait else ()))
    if white is None or (white == 1 and values.dtype.kind != "f"):
        raise _NoMask(f"has {len(levels)} values up to {top:g}, as class indices have")
    scaled = values.astype(np.float32) * np.float32(255 / white)
    between = (scaled >= MARGIN) & (scaled <= 255 - MARGIN)
    flat = _is_flat(scaled)
    third = flat & between
    if len(levels) <= CLASSES:
        third = flat & (values != low) & (values != top)
    indices = False
    if len(levels) == 3 and levels[1] < CLASSES < top:  # {0, 1, 255}, however thin
        ones, tops = (np.count_nonzero(values == level) for level in levels[1:])
        indices = bool(2 * ones > tops)
    if indices or np.count_nonzero(third) > max(4, 0.0005 * values.size):
        odd = levels[1:-1] if indices else np.unique(values[third])
        raise _NoMask(
            f"has areas of {listed(odd.tolist(), shown=3, show='{:g}'.format)} beside {low:g} and "
            f"{top:g}, as class indices and borders have"
        )
    soft = between.mean()
    if soft > NO_MASK:
        raise _NoMask(f"is a picture of greys: {soft:.0%} of its pixels are not black or white")
    # Far from black and white on all sides: no rim, such as of a photograph cut out on black.
    inner = np.count_nonzero(cv2.erode(between.astype(np.uint8), np.ones((5, 5), np.uint8)))
    if inner > INNER * np.count_nonzero(scaled >= MARGIN):
        raise _NoMask("is a picture of greys on black: what is not black is hardly anywhere white")
    return Mask((scaled > 128).astype(np.uint8), frozenset(["soft"] if soft > SOFT else ()))


def _is_flat(values: np.ndarray) -> np.ndarray:
    """Pixels among their like: the rims of an object are thinner, areas of their own are not."""
    box = np.ones((3, 3), np.uint8)
    return cv2.erode(values, box) == cv2.dilate(values, box)


def fits(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes differ by a few pixels: 3, or 3 %. NC4K is released with such masks."""
    return all(
        abs(a - b) <= max(0.03 * a, min(3, 0.15 * a)) for a, b in zip(size, other, strict=True)
    )


# What may be wrong with a mask that can be read, and how it is said of one file.
PECULIAR = {
    "empty": "no pixel is object",
    "whole": "every pixel is object",
    "inverted": "the object is most of the image and most of its border: inverted?",
    "tiny": "the object is a few pixels",
    "soft": f"over {SOFT:.0%} of the pixels are neither black nor white; above 128 is object",
    "classes": "of several colours, all of which are object",
}

# From this share of a data set's masks on it is an error.
TOO_MANY = {"empty": 1.0, "inverted": 0.5}


def peculiarities(mask: Mask) -> list[str]:
    """What of :data:`PECULIAR` is true of a mask."""
    pixels, found = mask.pixels, sorted(mask.traits & PECULIAR.keys())
    count = np.count_nonzero(pixels)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if count in (0, pixels.size):
        return [*found, "whole" if count else "empty"]
    # In none of 4,041 masks of CAMO, DUTS, Kvasir, ClinicDB and COCO.
    if 2 * count > pixels.size and border.mean() > 0.7:
        found.append("inverted")
    if count < 32 and 100 * count < pixels.size:
        found.append("tiny")
    return found


def read_pair(
    image_path: str, mask_path: str, *, any_size: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and mask (H, W) in {0, 1}; with ``any_size`` also a mask that is a few pixels
    larger or smaller than the image, see :func:`fits`.

    Raises:
        UnreadableFile: A file is unreadable, or the mask is not of the image's size.
    """
    image, mask = read_image(image_path), read_mask(mask_path).pixels
    if mask.shape != image.shape[:2] and not (any_size and fits(image.shape[:2], mask.shape)):
        (h, w), (mh, mw) = image.shape[:2], mask.shape
        raise UnreadableFile(
            f"{mask_path} is a mask of another size ({mw}x{mh}, its image is {w}x{h})"
        )
    return image, mask


def orientation_of(image: str | Path | Image.Image | None) -> int:
    """The EXIF orientation of an image file or of a PIL image; 1, as stored, where there is none.

    It fits the pixels of a PIL image that is loaded: Pillow turns those of a TIFF when it does.
    """
    with suppress(Exception):
        if isinstance(image, Image.Image):
            return image.getexif().get(ExifTags.Base.Orientation, 1)
        if image is not None:
            with Image.open(str(image)) as source:
                return orientation_of(source)
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, …) as viewers show them by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What :func:`upright` turned, back."""
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels)


def write_map(path: Path, values: np.ndarray, orientation: int = 1, *, keep: bool = True) -> None:
    """Writes a map of 8 bits, (H, W), or a picture, (H, W, 3 or 4), as PNG or JPEG.

    It fits the image as that is stored, and is tagged with the image's EXIF orientation, so that
    whatever turns the image for display turns the map alike.

    Args:
        path: The suffix tells the format.
        values: 0 to 255.
        orientation: That of the image.
        keep: See :func:`replacing`.
    """
    exif = Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    options: dict[str, Any] = dict(compress_level=3) if path.suffix == ".png" else dict(quality=95)
    with replacing(path, keep=keep) as temporary:
        Image.fromarray(values.astype(np.uint8, copy=False)).save(temporary, exif=exif, **options)

"""Image files of every format, and damage done to them by a seed."""

import io
import struct

import numpy as np
from PIL import Image

FORMATS = {
    "jpg": ("RGB", "JPEG", {"quality": 85}),
    "progressive.jpg": ("RGB", "JPEG", {"progressive": True}),
    "cmyk.jpg": ("CMYK", "JPEG", {}),
    "png": ("RGB", "PNG", {}),
    "alpha.png": ("RGBA", "PNG", {}),
    "palette.png": ("P", "PNG", {}),
    "16bit.png": ("I;16", "PNG", {}),
    "mask.png": ("L", "PNG", {}),
    "1bit.png": ("1", "PNG", {}),
    "bmp": ("RGB", "BMP", {}),
    "tif": ("RGB", "TIFF", {}),
    "lzw.tiff": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "webp": ("RGB", "WEBP", {}),
    "lossless.webp": ("RGBA", "WEBP", {"lossless": True}),
}
DAMAGES = ("truncated", "bytes", "hole", "header", "swapped", "garbage", "empty")


def tiff(pixels, orientation=1):
    """A TIFF of any number of channels and kind of values, as microscopes and satellites leave
    them.
    """
    height, width, channels = pixels.shape
    tags = [(256, 3, 1, width), (257, 3, 1, height), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2 if channels == 3 else 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, pixels.nbytes)]
    tags += [(274, 3, 1, orientation), (339, 3, 1, "uifc".index(pixels.dtype.kind) + 1)]
    bits = struct.pack(f"<{channels}H", *[8 * pixels.itemsize] * channels)
    where = 8 + pixels.nbytes
    value = int.from_bytes(bits.ljust(4, b"\0"), "little") if channels < 3 else where
    tags = sorted([*tags, (258, 3, channels, value)])
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = struct.pack("<2sHI", b"II", 42, where + len(bits))
    return start + pixels.tobytes() + bits + ifd + bytes(4)


def encoded(name, size=(40, 32), seed=0):
    """A file of the format, as bytes."""
    mode, kind, options = FORMATS[name]
    rng = np.random.default_rng(seed)
    pixels = Image.fromarray(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8)).resize(size)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 257)
    else:
        image = pixels.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(data, how, rng):
    """``data`` with damage of one kind, drawn from ``rng``."""
    data = bytearray(data)
    if how == "truncated":
        return bytes(data[: rng.integers(1, len(data))])
    if how == "bytes":
        for position in rng.integers(0, len(data), rng.integers(1, 12)):
            data[position] = rng.integers(0, 256)
    elif how == "hole":
        start = rng.integers(0, len(data))
        stop = min(len(data), start + rng.integers(4, 200))
        data[start:stop] = bytes(stop - start)
    elif how == "header":
        for position in rng.integers(0, min(64, len(data)), 3):
            data[position] = rng.integers(0, 256)
    elif how == "swapped":
        cut = rng.integers(1, len(data))
        data = data[cut:] + data[:cut]
    elif how == "garbage":
        data = bytearray(rng.integers(0, 256, len(data), dtype=np.uint8).tobytes())
    elif how == "empty":
        return b""
    return bytes(data)

"""Where a dataset's images and masks lie, which belong together, and whether they are readable."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SHOWN = 5
ROOT_VARIABLE = "CODMOE_DATA_ROOT"


class Pair(NamedTuple):
    """One image, its mask, and the stem that both file names share."""

    stem: str
    image: Path
    mask: Path


class Layout(NamedTuple):
    """Folder names of a known dataset layout, compared without regard to case.

    Args:
        image: Folder of images; ``{split}`` stands for the ``split_dir`` of the config.
        mask: Folder of masks.
        shared_masks: The mask folder serves other splits too; masks without image are fine.
    """

    image: str
    mask: str
    shared_masks: bool = False


LAYOUTS = (
    Layout("Image", "GT_Object"),  # COD10K-v3
    Layout("Imgs", "GT"),  # TestDataset/{CAMO,CHAMELEON,COD10K,NC4K} as SINet distributes them
    Layout("images", "masks"),  # PraNet's polyp sets
    Layout("image", "mask"),
    Layout("image", "masks"),
    Layout("images", "mask"),
    Layout("Image", "GT"),
    Layout("Images", "GT"),
    Layout("Img", "GT"),
)
# Tried below `data_root` where `split_dir` names no folder there.
SPLIT_LAYOUTS = (Layout("Images/{split}", "GT", shared_masks=True),)  # CAMO-V.1.0


class Folders(NamedTuple):
    """The two folders of a dataset; see :class:`Layout` for ``shared_masks``."""

    image: Path
    mask: Path
    shared_masks: bool = False


def resolve_root(data_root: str | os.PathLike) -> Path:
    """``data_root`` with ``~`` and ``$VAR`` expanded.

    A relative path that does not exist in the working directory is looked for in the folder that
    the environment variable ``CODMOE_DATA_ROOT`` names.
    """
    root = Path(os.path.expandvars(os.path.expanduser(os.fspath(data_root))))
    base = os.environ.get(ROOT_VARIABLE)
    if base and not root.is_absolute() and not root.exists():
        return Path(os.path.expanduser(base)) / root
    return root


def _contents(folder: Path) -> str:
    """What is at ``folder`` instead of the thing looked for, for error messages."""
    if not folder.exists():
        parent = folder.absolute().parent
        while not parent.exists():
            parent = parent.parent
        return f"{parent} holds {_names(sorted(p.name for p in parent.iterdir()))}"
    if not folder.is_dir():
        return f"{folder} is a file"
    return f"{folder} holds {_names(sorted(p.name for p in folder.iterdir()))}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (", ".join(map(repr, names[:SHOWN])) or "nothing") + more


def require_folder(folder: Path, key: str) -> Path:
    """``folder``, if it is one.

    Raises:
        FileNotFoundError: It is not; ``key`` is the config key that the message blames.
    """
    if folder.is_dir():
        return folder
    hint = ""
    if "$" in str(folder):
        hint = " (an environment variable in it is not set)"
    elif key == "data_root" and not folder.is_absolute():
        hint = f" (relative to {Path.cwd()}; {ROOT_VARIABLE} can name another place)"
    raise FileNotFoundError(f"{key}: there is no folder {folder}{hint}; {_contents(folder)}")


def _child(folder: Path, relative: str) -> Path | None:
    """The sub-folder ``relative`` of ``folder`` in whatever case it is written on disk."""
    for part in Path(relative).parts:
        fits = [p for p in folder.iterdir() if p.name.lower() == part.lower() and p.is_dir()]
        if not fits:
            return None
        folder = next((p for p in fits if p.name == part), fits[0])
    return folder


def find_folders(root: Path, split_dir: str | None = None) -> Folders:
    """The image and mask folder below ``root``/``split_dir``, after :data:`LAYOUTS`.

    Raises:
        FileNotFoundError: No known layout fits.
        ValueError: More than one fits.
    """
    require_folder(root, "data_root")
    base = root / split_dir if split_dir else root
    layouts: tuple[Layout, ...] = LAYOUTS
    if split_dir and not base.is_dir():
        base = root
        layouts = tuple(s._replace(image=s.image.format(split=split_dir)) for s in SPLIT_LAYOUTS)
    found = []
    for layout in layouts:
        image, mask = _child(base, layout.image), _child(base, layout.mask)
        if image and mask:
            found.append(Folders(image, mask, layout.shared_masks))
    if not found and split_dir:
        require_folder(root / split_dir, "split_dir")
    if not found:
        known = ", ".join(f"{layout.image}+{layout.mask}" for layout in layouts)
        raise FileNotFoundError(
            f"data_root: no known pair of image and mask folders in {base}; {_contents(base)}; "
            f"known are {known}; name others by image_dir and mask_dir"
        )
    if len(found) > 1:
        pairs = ", ".join(f"{f.image.name}+{f.mask.name}" for f in found)
        raise ValueError(
            f"data_root: {base} fits more than one layout ({pairs}); "
            "choose by image_dir and mask_dir"
        )
    return found[0]


def files_by_stem(folder: Path, key: str, prefix: str | None = None) -> dict[str, Path]:
    """``{stem: file}`` of the image files in ``folder`` whose names start with ``prefix``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Two files share one stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(require_folder(folder, key).iterdir()):
        name = path.name
        # Dot files: macOS leaves "._x.png" beside "x.png" in archives.
        if name.startswith(".") or path.suffix.lower() not in IMAGE_EXTENSIONS:
            continue
        if prefix and not name.startswith(prefix):
            continue
        if path.stem in found:
            raise ValueError(
                f"{key}: {found[path.stem].name!r} and {name!r} in {folder} have the same stem; "
                "keep one file for each stem"
            )
        found[path.stem] = path
    return found


def find_pairs(
    image_dir: str | os.PathLike,
    mask_dir: str | os.PathLike,
    *,
    prefix: str | None = None,
    shared_masks: bool = False,
) -> list[Pair]:
    """Images and masks of equal stem, sorted by stem.

    Args:
        image_dir: Folder of images.
        mask_dir: Folder of masks.
        prefix: Leave out files whose names do not start with it.
        shared_masks: Pass over masks without image instead of refusing them.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: An image has no mask, a mask no image, or two files one stem.
    """
    images = files_by_stem(Path(image_dir), "image_dir", prefix)
    masks = files_by_stem(Path(mask_dir), "mask_dir", prefix)
    faults = []
    if lonely := sorted(images.keys() - masks.keys()):
        faults.append(f"{len(lonely):,} of {len(images):,} images have no mask: {_names(lonely)}")
    lonely = [] if shared_masks else sorted(masks.keys() - images.keys())
    if lonely:
        faults.append(f"{len(lonely):,} of {len(masks):,} masks have no image: {_names(lonely)}")
    if faults:
        raise ValueError(
            f"images in {image_dir} and masks in {mask_dir} do not pair by stem: "
            + "; ".join(faults)
        )
    return [Pair(stem, images[stem], masks[stem]) for stem in sorted(images)]


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
    # Another format, or bytes behind the end, which is harmless: only decoding tells.
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _size(path: Path) -> tuple[int, int]:
    """Width and height by the file's header; ValueError with a short reason if it has none."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            size = image.size
            file.seek(0)
            start = file.read(8)
            file.seek(-min(8, os.path.getsize(path)), os.SEEK_END)
            # Cheap for the usual formats; the whole file is read only where its end looks wrong.
            if not is_complete(start + file.read(8)):
                file.seek(0)
                if not is_complete(file.read()):
                    raise ValueError("truncated")
    except OSError as error:
        empty = path.exists() and path.stat().st_size == 0
        raise ValueError("empty file" if empty else type(error).__name__) from error
    return size


def _fault(pair: Pair) -> str | None:
    sizes = []
    for path in (pair.image, pair.mask):
        try:
            sizes.append(_size(path))
        except ValueError as error:
            return f"{path} is unreadable ({error})"
    if sizes[0] == sizes[1]:
        return None
    (w, h), (mw, mh) = sizes
    return f"{pair.mask} is a mask of another size ({mw}x{mh}, its image is {w}x{h})"


def check_pairs(pairs: Iterable[Pair], workers: int = 8) -> None:
    """Open the header of every file, in threads, so that bad data is known before the first step.

    Raises:
        ValueError: Files are unreadable or truncated, or masks are not of their image's size; all
            are counted, the first five named.
    """
    pairs = list(pairs)
    Image.init()  # loads PIL's plugins, which is not safe in several threads at once
    with ThreadPoolExecutor(workers) as pool:
        faults = [fault for fault in pool.map(_fault, pairs) if fault]
    if faults:
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        raise ValueError(
            f"{len(faults):,} of {len(pairs):,} image/mask pairs cannot be used: "
            + "; ".join(faults[:SHOWN])
            + more
        )

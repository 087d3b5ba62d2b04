"""Where a dataset's images and masks lie, and which of them belong together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from codmoe.datasets.integrity import SHOWN
from codmoe.datasets.integrity import check_pairs as check_pairs
from codmoe.datasets.integrity import is_complete as is_complete

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
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
    Layout("Imgs", "GT"),  # NC4K; TestDataset/{CAMO,CHAMELEON,COD10K,NC4K} as SINet gives them out
    Layout("images", "masks"),  # PraNet's polyp sets
    Layout("image", "mask"),  # PraNet's training set
    Layout("image", "masks"),
    Layout("images", "mask"),
    Layout("Image", "GT"),  # CHAMELEON
    Layout("Images", "GT"),
    Layout("Img", "GT"),
    Layout("Imgs", "Masks"),
    Layout("Original", "Ground Truth"),  # CVC-ClinicDB as it is released
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
    the environment variable ``CODMOE_DATA_ROOT`` names; see :func:`candidate_roots`.
    """
    candidates = candidate_roots(data_root)
    return next(
        (root for root in candidates if root.exists()), candidates[min(1, len(candidates) - 1)]
    )


def candidate_roots(data_root: str | os.PathLike) -> list[Path]:
    """The places that ``data_root`` may mean, in the order in which they are tried.

    Of ``data/COD10K-v3`` with ``CODMOE_DATA_ROOT=/sets``: itself in the working directory,
    ``/sets/data/COD10K-v3``, ``/sets/COD10K-v3`` (``data`` is what the variable stands for), and
    ``/sets`` if it is itself the folder, ``COD10K-v3``.
    """
    root = Path(os.path.expandvars(os.path.expanduser(os.fspath(data_root))))
    base = os.environ.get(ROOT_VARIABLE)
    if not base or root.is_absolute():
        return [root]
    base = Path(os.path.expandvars(os.path.expanduser(base)))
    candidates = [root, base / root]
    if root.parts[:1] == ("data",):
        candidates.append(base.joinpath(*root.parts[1:]))
    if root.name and base.name.lower() == root.name.lower():
        candidates.append(base)
    return candidates


def contents(folder: Path) -> str:
    """What is at ``folder`` instead of the thing looked for, for error messages."""
    if not folder.exists():
        parent = folder.absolute().parent
        while not parent.exists():
            parent = parent.parent
        return f"{parent} holds {shown_names(sorted(p.name for p in parent.iterdir()))}"
    if not folder.is_dir():
        return f"{folder} is a file"
    return f"{folder} holds {shown_names(sorted(p.name for p in folder.iterdir()))}"


def shown_names(names: Sequence[str]) -> str:
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
    raise FileNotFoundError(f"{key}: there is no folder {folder}{hint}; {contents(folder)}")


def child_folder(folder: Path, relative: str) -> Path | None:
    """The sub-folder ``relative`` of ``folder`` in whatever case it is written on disk."""
    for part in Path(relative).parts:
        fits = [p for p in folder.iterdir() if p.name.lower() == part.lower() and p.is_dir()]
        if not fits:
            return None
        folder = next((p for p in fits if p.name == part), fits[0])
    return folder


def fitting_folders(base: Path, layouts: Sequence[Layout] = LAYOUTS) -> Folders | None:
    """The image and mask folder in ``base`` that fit one of ``layouts``, or None.

    Raises:
        ValueError: More than one fits.
    """
    found = {}
    for layout in layouts:
        image, mask = child_folder(base, layout.image), child_folder(base, layout.mask)
        if image and mask:
            found[image, mask] = Folders(image, mask, layout.shared_masks)
    if len(found) > 1:
        pairs = ", ".join(f"{f.image.name}+{f.mask.name}" for f in found.values())
        raise ValueError(
            f"data_root: {base} fits more than one layout ({pairs}); "
            "choose by image_dir and mask_dir"
        )
    return next(iter(found.values()), None)


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
    found = fitting_folders(base, layouts)
    if found is None and split_dir:
        require_folder(root / split_dir, "split_dir")
    if found is None:
        known = ", ".join(f"{layout.image}+{layout.mask}" for layout in layouts)
        raise FileNotFoundError(
            f"data_root: no known pair of image and mask folders in {base}; {contents(base)}; "
            f"known are {known}; name others by image_dir and mask_dir"
        )
    return found


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
        faults.append(
            f"{len(lonely):,} of {len(images):,} images have no mask: {shown_names(lonely)}"
        )
    lonely = [] if shared_masks else sorted(masks.keys() - images.keys())
    if lonely:
        faults.append(
            f"{len(lonely):,} of {len(masks):,} masks have no image: {shown_names(lonely)}"
        )
    if faults:
        raise ValueError(
            f"images in {image_dir} and masks in {mask_dir} do not pair by stem: "
            + "; ".join(faults)
        )
    return [Pair(stem, images[stem], masks[stem]) for stem in sorted(images)]

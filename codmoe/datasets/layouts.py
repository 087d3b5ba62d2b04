"""Finds data sets on disk by their known layouts, and pairs images with masks."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.logging import MMLogger, print_log

from codmoe.messages import listed

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ROOT_VARIABLE = "CODMOE_DATA_ROOT"
# What systems and tools leave beside data, and inside zip files: hidden files, macOS' halves of
# files, thumbnails of network drives, bins.
LITTER = re.compile(
    r"(\..*|__macosx|@eadir|@tmp|#recycle|#snapshot|\$recycle\.bin|lost\+found"
    r"|system volume information|__pycache__|(eh)?thumbs(\.db)?|desktop\.ini|icon\r)$",
    re.IGNORECASE,
)


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
    Layout("img_dir", "ann_dir"),  # mmsegmentation's
)
# Tried below `data_root` where `split_dir` names no folder there.
SPLIT_LAYOUTS = (Layout("Images/{split}", "GT", shared_masks=True),)  # CAMO-V.1.0


class Folders(NamedTuple):
    """The two folders of a dataset; see :class:`Layout` for ``shared_masks``."""

    image: Path
    mask: Path
    shared_masks: bool = False


_said: set[tuple[str, ...]] = set()


def say_once(text: str, place: Path, level: int = logging.INFO) -> None:
    """Logs something about the files in ``place``, once in a log: a training opens its data sets
    several times, to check them, to load them, and for each of its parts.
    """
    key = (MMLogger.get_current_instance().instance_name, str(place), text)
    if key not in _said:
        _said.add(key)
        print_log(text, "current", level)


def expanded(path: str | os.PathLike) -> Path:
    """The path with ``~`` and ``$VAR`` filled in."""
    return Path(os.path.expandvars(os.path.expanduser(os.fspath(path))))


def candidate_roots(data_root: str | os.PathLike) -> list[Path]:
    """The places that ``data_root`` may mean, in the order in which they are tried.

    Of ``data/COD10K-v3`` with ``CODMOE_DATA_ROOT=/sets``: itself in the working directory,
    ``/sets/data/COD10K-v3``, ``/sets/COD10K-v3`` (``data`` is what the variable stands for), and
    ``/sets`` if it is itself the folder, ``COD10K-v3``.
    """
    root, variable = expanded(data_root), os.environ.get(ROOT_VARIABLE)
    if not variable or root.is_absolute():
        return [root]
    base = expanded(variable)
    candidates = [root, base / root]
    if root.parts[:1] == ("data",):
        candidates.append(base.joinpath(*root.parts[1:]))
    if root.name and base.name.lower() == root.name.lower():
        candidates.append(base)
    return candidates


def resolve_root(data_root: str | os.PathLike) -> Path:
    """The first of :func:`candidate_roots` that exists, or its place in ``CODMOE_DATA_ROOT``."""
    candidates = candidate_roots(data_root)
    return next((root for root in candidates if root.exists()), candidates[:2][-1])


def contents(folder: Path) -> str:
    """Names in ``folder`` or, if there is no such folder, in the nearest above, for messages."""
    if folder.is_file():
        return f"{folder} is a file"
    if not folder.exists():
        folder = next(parent for parent in folder.absolute().parents if parent.exists())
    return f"{folder} holds {listed(sorted(p.name for p in folder.iterdir()), show=repr)}"


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

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).lower()

    for part in Path(relative).parts:
        fits = [p for p in folder.iterdir() if plain(p.name) == plain(part) and p.is_dir()]
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


def stem_of(path: Path) -> str:
    """The stem in Unicode's composed form: macOS decomposes the accents that others compose."""
    return unicodedata.normalize("NFC", path.stem)


def image_files(
    folder: Path, prefix: str | None = None, extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> list[Path]:
    """Image files in ``folder``, sorted by name, of those whose names start with ``prefix``.

    Raises:
        ValueError: A folder is called like an image.
    """
    start, found = unicodedata.normalize("NFC", prefix or ""), []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if path.suffix.lower() not in extensions or LITTER.match(entry.name):
                continue
            if entry.is_dir():
                raise ValueError(f"{path} is a folder called like an image; rename or remove it")
            if unicodedata.normalize("NFC", entry.name).startswith(start):
                found.append(path)
    return sorted(found)


def nested_files(
    folder: Path, beside: Path | None = None, extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> list[Path]:
    """Image files in folders below ``folder``, which no data set reads; sorted. ``beside`` may lie
    in it and is none of its own, as the folder of the masks.
    """
    found: list[Path] = []
    for child in _subfolders(folder):
        if beside is not None and beside.resolve().is_relative_to(child.resolve()):
            continue
        for place, folders, names in os.walk(child):
            folders[:] = [name for name in folders if not LITTER.match(name)]
            paths = (Path(place, name) for name in names if not LITTER.match(name))
            found += [path for path in paths if path.suffix.lower() in extensions]
    return sorted(found)


def nested_words(
    folder: Path, beside: Path | None = None, extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> str:
    """What is to be said of :func:`nested_files`; empty if there are none."""
    nested = nested_files(folder, beside, extensions)
    if not nested:
        return ""
    places = sorted({str(path.parent.relative_to(folder)) for path in nested})
    return (
        f"{len(nested):,} image files below {folder} are not read, since they lie in sub-folders "
        f"({listed(places, shown=3)}): put what is meant into one folder"
    )


def files_by_stem(
    folder: Path,
    key: str,
    prefix: str | None = None,
    extensions: Sequence[str] = IMAGE_EXTENSIONS,
    exclude: Collection[str] = (),
) -> dict[str, Path]:
    """``{stem: file}`` of the image files in ``folder`` whose names start with ``prefix``, but for
    the stems of ``exclude``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Two files share one stem.
    """
    found: dict[str, Path] = {}
    for path in image_files(require_folder(folder, key), prefix, extensions):
        stem = stem_of(path)
        if stem in exclude:
            continue
        if stem in found:
            accents = found[stem].stem != path.stem
            raise ValueError(
                f"{key}: {found[stem].name!r} and {path.name!r} in {folder} have the same stem"
                + (", but for how their accents are encoded (NFC and NFD)" if accents else "")
                + "; keep one file for each stem"
            )
        found[stem] = path
    return found


def check_apart(image_dir: str | os.PathLike, mask_dir: str | os.PathLike) -> None:
    """Raises ValueError if images and masks are said to lie in one folder."""
    if Path(image_dir).resolve() == Path(mask_dir).resolve():
        raise ValueError(
            f"{image_dir} is given for images and for masks, which need a folder each; move the "
            "masks into one of their own, with the names of their images"
        )


def find_pairs(
    image_dir: str | os.PathLike,
    mask_dir: str | os.PathLike,
    *,
    prefix: str | None = None,
    shared_masks: bool = False,
    exclude: Sequence[str] = (),
) -> list[Pair]:
    """Images and masks of equal stem, sorted by stem.

    Args:
        image_dir: Folder of images.
        mask_dir: Folder of masks.
        prefix: Leave out files whose names do not start with it.
        shared_masks: Pass over masks without image instead of refusing them; those whose images
            are another set's (:func:`sharing`) are passed over anyway.
        exclude: Stems of images that are left out before anything is paired, with their masks.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: An image has no mask, a mask no image, or two files one stem; no image has a
            stem of ``exclude``; or images and masks lie in one folder.
    """
    check_apart(image_dir, mask_dir)
    out = {unicodedata.normalize("NFC", stem) for stem in exclude}
    images = files_by_stem(Path(image_dir), "image_dir", prefix, exclude=out)
    masks = files_by_stem(Path(mask_dir), "mask_dir", prefix, exclude=out)
    faults = []
    if absent := out and out - {stem_of(path) for path in image_files(Path(image_dir), prefix)}:
        # A misspelt stem would leave the duplicate in.
        raise ValueError(
            f"exclude names {listed(sorted(absent), show=repr)}, which {image_dir} does not hold; "
            "give stems, without suffix"
        )
    if lonely := sorted(images.keys() - masks.keys()):
        faults.append(
            f"{len(lonely):,} of {len(images):,} images have no mask: {listed(lonely, show=repr)}"
        )
    others = masks.keys() - images.keys()
    if lonely := [] if shared_masks else sorted(without_others(others, Path(mask_dir))):
        faults.append(
            f"{len(lonely):,} of {len(masks):,} masks have no image: {listed(lonely, show=repr)}"
        )
    folders = (Path(image_dir), Path(mask_dir))
    nested = [words for words in map(nested_words, folders, reversed(folders)) if words]
    if faults:
        raise ValueError(
            f"images in {image_dir} and masks in {mask_dir} do not pair by stem: "
            + "; ".join(faults + nested)
            + "; add what is missing, or move the others away (codmoe doctor lists all)"
        )
    for words in nested if images else ():  # of a set without images an error tells it
        say_once(words, Path(image_dir), logging.WARNING)
    return [Pair(stem, images[stem], masks[stem]) for stem in sorted(images)]


# Images of each part in the protocol of the COD papers ...
PROTOCOL = {
    ("COD10K", "train"): 3040,
    ("COD10K", "test"): 2026,
    ("CAMO", "train"): 1000,
    ("CAMO", "test"): 250,
    ("CHAMELEON", "test"): 76,
    ("NC4K", "test"): 4121,
}
# ... and of PraNet's, which are recognised in its TrainDataset + TestDataset alone.
POLYPS = {
    "Kvasir": 100,
    "CVC-ClinicDB": 62,
    "CVC-300": 60,
    "CVC-ColonDB": 380,
    "ETIS-LaribPolypDB": 196,
}
POLYP_TRAIN = 1450

# Starts of file names by which a mixed training folder is told apart; the spelling is CAMO's own.
CAMOUFLAGED = "COD10K-CAM-"
FAMILIES = {"COD10K": CAMOUFLAGED, "CAMO": "camourflage_"}
# How the releases and common archives call their folders.
FOLDER_NAMES = {
    "COD10K": r"cod10k",
    "CAMO": r"camo($|[-_ .])",
    "CHAMELEON": r"chameleon",
    "NC4K": r"nc4k",
}
TEST_ONLY = ("CHAMELEON", "NC4K")
ROLES = dict.fromkeys(("train", "training", "traindataset"), "train")
ROLES |= dict.fromkeys(("test", "testing", "testdataset"), "test")
ROLES |= dict.fromkeys(("val", "validation"), "val")
DEPTH = 3
KNOWN = (
    "COD10K-v3 (Train and Test, each with Image and GT_Object), "
    "CAMO-V.1.0 (Images/Train, Images/Test, GT), "
    "TrainDataset/{Imgs,GT} with TestDataset/<name>/{Imgs,GT} (or images and masks), "
    "CHAMELEON or NC4K or any other folder with "
    + ", ".join(f"{layout.image}+{layout.mask}" for layout in LAYOUTS)
    + ", or a folder of such folders"
)


class Part(NamedTuple):
    """Images and masks that are used together.

    Args:
        name: ``"CAMO"``; for a benchmark its name in the papers, for others the folder's.
        role: ``"train"``, ``"test"``, ``"val"``, or ``""`` where no name tells.
        folders: Where they lie.
        layout: Name of the layout it was recognised by.
        prefix: Only files whose names start with it belong to the part.
        expected: Number of images in the protocol, if there is one.
    """

    name: str
    role: str
    folders: Folders
    layout: str
    prefix: str | None = None
    expected: int | None = None

    @property
    def label(self) -> str:
        """``"CAMO test"``."""
        return f"{self.name} {self.role}".strip()


class Tree(NamedTuple):
    """All parts below ``root``, as :func:`recognise` finds them."""

    root: Path
    parts: tuple[Part, ...]

    @property
    def layout(self) -> str:
        """Names of the layouts, each once."""
        return ", ".join(dict.fromkeys(part.layout for part in self.parts))

    def find(self, name: str, role: str) -> Part:
        """The one part of this name and role.

        Raises:
            FileNotFoundError: There is none.
            ValueError: There are several.
        """
        found = [p for p in self.parts if p.name.lower() == name.lower() and p.role == role]
        if not found:
            there = ", ".join(part.label for part in self.parts)
            raise FileNotFoundError(
                f"data_root: no {name} {role} set in {self.root}, which holds {there} "
                f"({self.layout})"
            )
        if len(found) > 1:
            where = " and ".join(str(part.folders.image) for part in found)
            raise ValueError(
                f"data_root: {len(found)} {name} {role} sets in {self.root}: {where}; give the "
                "data_root of one, or move the other away"
            )
        return found[0]


def recognise(root: str | os.PathLike) -> Tree:
    """The data sets in ``root`` and up to three levels below.

    Raises:
        FileNotFoundError: There is no such folder, or no known layout in it.
        ValueError: A folder fits more than one layout.
    """
    root = require_folder(Path(root), "data_root")
    parts = tuple(_parts(root, DEPTH))
    if not parts:
        raise FileNotFoundError(
            f"data_root: no known layout in {root} nor up to {DEPTH} levels below; "
            f"{contents(root)}; known are {KNOWN}; name other folders by --images and --masks, "
            "in a config by image_dir and mask_dir"
        )
    return Tree(root, parts)


def sharing(mask_dir: Path) -> list[Part]:
    """The sets whose masks lie together in one folder, as in CAMO's release those of training and
    test do; none if the folder is one set's own.
    """
    try:
        parts = recognise(mask_dir.absolute().parent).parts
    except (FileNotFoundError, ValueError):
        return []
    return [p for p in parts if p.folders.shared_masks and p.folders.mask.samefile(mask_dir)]


def without_others(stems: Iterable[str], mask_dir: Path) -> set[str]:
    """Of stems of masks without image those whose images are in no set that shares the folder."""
    left = set(stems)
    for part in sharing(mask_dir) if left else ():
        left -= {stem_of(path) for path in image_files(part.folders.image)}
    return left


def _parts(folder: Path, depth: int) -> Iterator[Part]:
    if whole := _cod10k(folder) or _camo(folder) or _crossed(folder) or _single(folder):
        # What lies beside these belongs to them: Info, GT_Edge, GT_Instance.
        yield from whole
        return
    done: set[str] = set()
    yield from _train_and_test_datasets(folder, done)
    yield from _splits(folder, done)
    if depth:
        for child in _subfolders(folder):
            if child.name not in done:
                try:
                    yield from _parts(child, depth - 1)
                except ValueError as error:  # something else that lies beside the data
                    say_once(f"{child} is left out: {error}", child, logging.WARNING)


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not LITTER.match(e.name) and e.is_dir()]
    except PermissionError:
        return []  # somebody else's folder beside the data
    return [folder / name for name in sorted(names)]


def _part(name: str, role: str, folders: Folders, layout: str, prefix: str | None = None) -> Part:
    return Part(name, role, folders, layout, prefix, PROTOCOL.get((name, role)))


def _cod10k(folder: Path) -> list[Part]:
    parts = []
    for subset in ("Train", "Test"):
        image = child_folder(folder, f"{subset}/Image")
        mask = child_folder(folder, f"{subset}/GT_Object")
        if image and mask:
            role = subset.lower()
            parts.append(_part("COD10K", role, Folders(image, mask), "COD10K-v3", CAMOUFLAGED))
    return parts


def _camo(folder: Path) -> list[Part]:
    mask = child_folder(folder, "GT")
    if mask is None:
        return []
    # CAMO-COCO-V.1.0 has a folder of images without camouflage beside the one that is meant.
    name = "CAMO" if not folder.name.lower().startswith("non") else folder.name
    return [
        _part(name, subset.lower(), Folders(image, mask, True), "CAMO-V.1.0")
        for subset in ("Train", "Test")
        if (image := child_folder(folder, f"Images/{subset}"))
    ]


def _crossed(folder: Path) -> list[Part]:
    """Parts within the two folders, as mmsegmentation lays them out: ``img_dir/train``."""
    folders = fitting_folders(folder)
    if folders is None or image_files(folders.image):
        return []
    name, _ = _name_and_role(folder)
    layout = f"{folders.image.name}+{folders.mask.name}, each with train and test"
    return [
        _part(name, ROLES[child.name.lower()], Folders(child, mask), layout)
        for child in _subfolders(folders.image)
        if child.name.lower() in ROLES and (mask := child_folder(folders.mask, child.name))
    ]


def _single(folder: Path) -> list[Part]:
    folders = fitting_folders(folder)
    if folders is None:
        return []
    name, role = _name_and_role(folder)
    layout = name if name in TEST_ONLY else f"{folders.image.name}+{folders.mask.name}"
    prefix = None
    if name == "COD10K" and image_files(folders.image, CAMOUFLAGED):
        prefix = CAMOUFLAGED
    return [_part(name, role, folders, layout, prefix)]


def _name_and_role(folder: Path) -> tuple[str, str]:
    folder = folder.absolute()
    role = ROLES.get(folder.name.lower(), "")
    named = folder.parent if role else folder
    name = next(
        (name for name, start in FOLDER_NAMES.items() if re.match(start, named.name.lower())),
        named.name,
    )
    if not role and name in TEST_ONLY:
        role = "test"
    if not role:
        words = re.split(r"[^a-z]+", folder.name.lower())
        role = next((ROLES[word] for word in words if word in ROLES), "")
    return name, role


def _train_and_test_datasets(folder: Path, done: set[str]) -> Iterator[Part]:
    layout = "TrainDataset + TestDataset"
    train, test = child_folder(folder, "TrainDataset"), child_folder(folder, "TestDataset")
    tests = []
    if test:
        done.add(test.name)
        for part in _parts(test, 1):
            expected = part.expected or PROTOCOL.get((part.name, "test"), POLYPS.get(part.name))
            tests.append(part._replace(role="test", layout=layout, expected=expected))
    folders = fitting_folders(train) if train else None
    if train and folders:
        done.add(train.name)
        mixed = [
            _part(name, "train", folders, layout, prefix)
            for name, prefix in FAMILIES.items()
            if image_files(folders.image, prefix)
        ]
        polyps = any(part.name in POLYPS for part in tests)
        whole = Part(train.name, "train", folders, layout)
        yield from mixed or [whole._replace(expected=POLYP_TRAIN if polyps else None)]
    yield from tests


def _splits(folder: Path, done: set[str]) -> Iterator[Part]:
    for child in _subfolders(folder):
        if child.name.lower() in ROLES and child.name not in done and fitting_folders(child):
            done.add(child.name)
            for part in _single(child):
                yield part._replace(layout=f"train/test folders of {part.layout}")


def outsiders(part: Part, parts: Iterable[Part]) -> list[str]:
    """Names of image files in ``part``'s folder that belong to none of ``parts``; sorted."""
    # A part without prefix takes every file.
    starts = tuple(p.prefix or "" for p in parts if p.folders.image == part.folders.image)
    names = [path.name for path in image_files(part.folders.image)]
    return [name for name in names if not name.startswith(starts)]

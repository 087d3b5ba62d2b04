"""Artefacts: folders with all that torch compiled for a prepared model.

They are copies of torch's cache, which hold native code and pickles. Only the user who wrote one
has it copied back into a cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codmoe import __version__
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.graphs import keep_compiled
from codmoe.files import replacing, user_cache

MANIFEST, FILES = "manifest.json", "cache"
FORMAT = "compiled"
OF_THE_MAKING = (".lock", ".gch", ".tmp")
"""Endings of files that only compiling reads."""
KERNELS, GROUPS, PLACE = "triton", "__grp__*.json", b"[TRITON_CACHE_DIR]"
"""Triton's folder in the cache; its files that name the others by whole paths, and what these begin
with in an artefact."""
Key = tuple[Any, ...]


def read_manifest(folder: str | Path) -> tuple[dict[str, Any], str]:
    """The manifest of an artefact, and its digest.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not one of an artefact.
    """
    path = Path(folder).expanduser() / MANIFEST
    make = "make one with codmoe export CHECKPOINT --format compiled --out FOLDER"
    if not path.is_file():
        raise FileNotFoundError(f"artefact {folder} has no {MANIFEST}; {make}")
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        numbers = [*manifest["batches"], *manifest["groups"]]
        texts = [manifest["made"]["precision"], manifest["made"]["layout"]]
        texts += [*dict(manifest["files"]), *dict(manifest["files"]).values()]
        fits = all(type(n) is int for n in numbers) and all(type(t) is str for t in texts)
        if manifest["format"] == FORMAT and fits:
            return manifest, hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not that of compiled pieces; {make}")


def circumstances(copies: PartCopies) -> dict[str, Any]:
    """What compiled code depends on, by the name that a message has for it."""
    device, threads = copies.device, None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}, CUDA {torch.version.cuda}"
    else:
        name, threads = f"{device.type}, {_processor()}", torch.get_num_threads()
    return dict(
        torch=str(torch.__version__),
        device=name,
        threads=threads,
        precision=copies.dtype,
        layout=copies.memory_format,
        model=fingerprint(copies),
    )


def _processor() -> str:
    """What code for this CPU may use, in short."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"


_PLAIN = (bool, int, float, str, tuple, list, torch.dtype, type(None))


def fingerprint(copies: PartCopies) -> str:
    """Tells the code and the shapes of a model's parts from others; weights do not matter."""
    digest = hashlib.sha256(__version__.encode())
    files = {Path(__file__), *(Path(__file__).parents[1] / "models").rglob("*.py")}
    for name, part in sorted(copies.modules.items()):
        told = [name, re.sub(r" at 0x[0-9a-f]+", "", repr(part))]
        for path, module in part.named_modules():
            values = sorted((k, v) for k, v in vars(module).items() if isinstance(v, _PLAIN))
            told.append(f"{path} {values}")
            source = getattr(sys.modules.get(type(module).__module__), "__file__", None)
            files.add(Path(source or __file__))
        for key, tensor in _tensors(part).items():
            told.append(f"{key} {_looks(tensor)}")
        digest.update("\n".join(told).encode())
    of_torch = Path(torch.__file__).parent  # its version is compared
    sources = [file for file in files if of_torch not in file.parents and file.is_file()]
    # By content: the order of paths depends on where packages lie.
    for one in sorted(map(_digest, sources)):
        digest.update(one.encode())
    return digest.hexdigest()


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    named = (part.named_parameters, part.named_buffers)
    return {key: value for each in named for key, value in each(remove_duplicate=False)}


def _looks(tensor: Tensor) -> Key:
    """All that code for tensors of fixed shapes may rely on."""
    # Where there is one row, nothing depends on how far the next would be.
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    strides = tuple(0 if side == 1 else stride for side, stride in pairs)
    return (str(tensor.dtype), tuple(tensor.shape), strides, tensor.data_ptr() % 16 == 0)


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """What is compiled meanwhile lies in ``folder``, which is empty before, and nowhere else."""
    from torch._inductor.utils import fresh_inductor_cache  # the name that torch 2.6 has, too

    with fresh_inductor_cache(dir=str(folder.resolve()), delete=False):
        kernels = os.environ["TRITON_CACHE_DIR"]
        yield
    made = Path(kernels).parent
    for path in _files(made):
        kept = folder / FILES / path.relative_to(made)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, kept)
        if kept.match(GROUPS):
            kept.write_bytes(kept.read_bytes().replace(os.fsencode(kernels), PLACE))
    shutil.rmtree(made)


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in found if not path.name.endswith(OF_THE_MAKING)]


def write_manifest(folder: Path, **content: Any) -> None:
    """Write the manifest of what was :func:`recorded` in a folder, with the digest of each file,
    and note in the user's cache folder that this user wrote it.

    Args:
        content: ``made``, the :func:`circumstances`; ``batches``, ``groups``, ``size``.

    Raises:
        OSError: The user's cache folder cannot be written.
    """
    place = folder / FILES
    files = {path.relative_to(place).as_posix(): _digest(path) for path in _files(place)}
    text = json.dumps(dict(format=FORMAT, **content, files=files), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    notes = _notes()
    notes.mkdir(exist_ok=True)
    (notes / read_manifest(folder)[1]).touch()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _notes() -> Path:
    return user_cache() / "artefacts"


def _find_tuned() -> None:
    """Has torch find in its cache which variant of a kernel was fastest. It looks beside the file
    that the kernel names as its source by a whole path; of an artefact's kernels that is a folder
    of the making, and each would be timed again.
    """
    from torch._inductor.runtime.autotune_cache import AutotuneCache
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    create = AutotuneCache.create
    if hasattr(create, "__wrapped__"):
        return

    @functools.wraps(create)
    def found(inductor_meta: dict[str, Any], filename: str, configs_hash: str) -> Any:
        if not Path(filename).exists():
            filename = str(Path(cache_dir(), *Path(filename).parts[-2:]))
        return create(inductor_meta, filename, configs_hash)

    AutotuneCache.create = staticmethod(found)  # type: ignore[method-assign]


def take_over(folder: str | Path, copies: PartCopies) -> str:
    """Put what an artefact holds where torch and :class:`KeptParts` look for it.

    torch unpickles it there. So nothing is taken before it is known that this user wrote it: a note
    in the user's cache folder has the digest of the manifest, and the manifest those of the files,
    whose very bytes are compared and written.

    Args:
        folder: What ``codmoe export --format compiled`` wrote.
        copies: The parts that it is to be for.

    Returns:
        Why it is not used, in one sentence; empty if all fits.

    Raises:
        FileNotFoundError, ValueError: There is no artefact.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    folder = Path(folder).expanduser()
    manifest, digest = read_manifest(folder)
    again = "make it again with codmoe export --format compiled; compiling meanwhile"
    try:
        if not (_notes() / digest).is_file():
            raise PermissionError
    except OSError:
        return (
            f"artefact {folder} was not written by this user as it is, and code of others is not "
            f"loaded; {again}"
        )
    for name, value in circumstances(copies).items():
        made = manifest["made"].get(name)
        if made != value:
            found = "another" if name == "model" else f"{made}, not {value}"
            return f"artefact {folder} is for {name} {found}; {again}"
    keep_compiled()
    _find_tuned()
    kernels = triton_cache_dir(copies.device.index or 0)
    try:
        for name, wanted in manifest["files"].items():
            path = Path(cache_dir()) / name
            if name.startswith(f"{KERNELS}/"):
                path = Path(kernels) / name.removeprefix(f"{KERNELS}/")
            if path.exists():
                continue
            content = (folder / FILES / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != wanted:
                return f"{folder / FILES / name} is not the file that was written; {again}"
            if path.match(GROUPS):
                content = content.replace(PLACE, os.fsencode(kernels))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path, keep=False) as part:
                part.write_bytes(content)
    except OSError as error:
        return f"artefact {folder} cannot be taken over ({error}); {again}"
    return ""

"""Writes files whole or not at all, never over what is there, and holds a folder for one run."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import platform
import shlex
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from codmoe.messages import command_line

LOCK = ".codmoe.lock"
"""Name of the file by which a run holds its work dir."""
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def user_cache() -> Path:
    """The user's own folder for what codmoe makes anew where it is lost, ``~/.cache/codmoe``, or
    in ``$XDG_CACHE_HOME``; made if it is not there, for this user alone.

    Raises:
        PermissionError: It belongs to somebody else, or others may write there.
        OSError: It cannot be made.
    """
    home = os.environ.get("XDG_CACHE_HOME") or ""
    # A relative path is to be ignored, the specification of these folders says.
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    folder = root / "codmoe"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_own(folder, "name another folder in XDG_CACHE_HOME")
    return folder


def check_own(folder: Path, remedy: str) -> None:
    """Refuse a folder whose files somebody else may have written.

    Raises:
        PermissionError: It belongs to somebody else, or others may write there.
    """
    if hasattr(os, "getuid"):
        state = folder.stat()
        if state.st_uid != os.getuid() or state.st_mode & 0o022:
            raise PermissionError(f"{folder} is not this user's alone; chmod 700 it, or {remedy}")


def keep_old(path: str | os.PathLike) -> Path | None:
    """Renames an existing file to ``<stem>.<YYYYmmdd-HHMMSS><suffix>`` in its folder.

    Returns:
        The new path of the old file, or None if there was nothing to keep.

    Raises:
        ValueError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file in it.")
    if not os.path.lexists(path):
        return None
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    kept = path.with_name(f"{path.stem}.{stamp}{path.suffix}")
    count = 1
    # Two writes within one second would otherwise take the same name, and rename replaces silently.
    while os.path.lexists(kept):
        count += 1
        kept = path.with_name(f"{path.stem}.{stamp}-{count}{path.suffix}")
    path.rename(kept)
    return kept


@contextmanager
def _temporary(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path for what becomes ``path``; it is gone when the block ends.

    Raises:
        ValueError: ``path`` is a folder.
        OSError: It cannot be written; ``filename`` is ``path``, whatever failed.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file in it.")
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def replacing(path: str | os.PathLike, *, keep: bool = True) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well.

    The temporary file lies in the same folder, because ``os.replace`` is atomic only within one
    file system, and has the same suffix, because writers read the format from it. A file already at
    ``path`` is kept under a dated name (see :func:`keep_old`) unless ``keep`` is off, which is for
    files that the run itself wrote. If the block raises, nothing changes.

    Raises:
        ValueError: ``path`` is a folder.
        OSError: It cannot be written; ``filename`` is ``path``, whatever failed.
    """
    with _temporary(path) as temporary:
        yield temporary
        if keep:
            keep_old(path)
        os.replace(temporary, path)


def check_writable(path: str | os.PathLike) -> None:
    """Tells before hours of work what :func:`replacing` would tell after them.

    Raises:
        ValueError: ``path`` is a folder.
        OSError: It cannot be written.
    """
    with _temporary(path) as temporary:
        temporary.touch()


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder that becomes ``path``, which is not there or empty, when the block ends
    well.

    Raises:
        ValueError: ``path`` holds something.
        OSError: It cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already and is not touched; name another folder")
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary.mkdir()
        yield temporary
        # Onto an empty folder, too; onto one that was filled since: an error.
        temporary.rename(path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def explained(error: OSError, path: str | os.PathLike) -> OSError:
    """The error of a write as one that names ``path``; one of a file elsewhere as it is."""
    path = Path(path)
    at = Path(os.fsdecode(error.filename)) if error.filename else path
    if error.errno is None or (at.parent != path.parent and at not in path.parents):
        return error
    # A file where a folder is to be is "File exists" for mkdir.
    code = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno
    hint = "; free some room, or raise the quota or ulimit -f" if code in _FULL else ""
    return OSError(code, f"cannot be written: {os.strerror(code)}{hint}", os.fspath(path))


def _beside(path: Path) -> Path:
    """A new name in the same folder that tells :func:`sweep` who made it."""
    token = uuid.uuid4().hex[:8]
    return path.with_name(f".codmoe-{_HOST}-{os.getpid()}-{token}{path.suffix}")


def sweep(folder: str | os.PathLike) -> None:
    """Removes temporary files and folders that processes of this machine left when they were
    killed; those of other machines after a day.
    """
    for left in Path(folder).glob(".codmoe-*-*-*"):
        host, pid = left.name.split("-")[1:3]
        with suppress(OSError, ValueError):
            if host == _HOST:
                ended = began(int(pid)) is None
            else:
                ended = time.time() - left.stat().st_mtime > 86_400
            if ended:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def holding(lock: str | os.PathLike, subject: str, way_out: str) -> Iterator[None]:
    """Holds ``subject`` for this process until the block ends.

    The lock is a file that says who holds it, and not ``flock``, of which some network file systems
    know nothing and on which others hang. One of a process that has ended is taken over.

    Args:
        lock: File to make.
        subject: What is held, for messages.
        way_out: What else the user can do, for the error.

    Raises:
        ValueError: Another process holds it.
        OSError: The lock cannot be written.
    """
    lock, mine = Path(lock), _holder()
    made = [folder for folder in lock.parents if not folder.exists()]
    while not _create(lock, mine):
        other = _read_lock(lock)
        who = (
            f"process {other.get('pid', '?')} on {other.get('host', '?')} since "
            f"{other.get('since', '?')} ({other.get('command', 'its record cannot be read')})"
        )
        if not _has_ended(other, lock):
            raise ValueError(
                f"{subject} is in use by {who}; wait for it, or {way_out}. If it has ended, delete "
                f"{lock}"
            )
        # Taken away under another name first: of two that come at once, one finds nothing.
        away = _beside(lock)
        with suppress(FileNotFoundError):
            os.rename(lock, away)
            if _read_lock(away) != other:  # somebody else was faster and holds it by now
                os.rename(away, lock)
                continue
            away.unlink()
            logging.getLogger("codmoe").warning(f"took over {subject}: {who} has ended")
    try:
        yield
    finally:
        # A folder that was deleted and made anew may be another's by now.
        if _read_lock(lock) == mine:
            lock.unlink(missing_ok=True)
        with suppress(OSError):  # of a run that failed before it wrote anything
            for folder in made:
                folder.rmdir()


def _holder() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    return dict(
        host=platform.node(),
        pid=os.getpid(),
        began=began(os.getpid()),
        since=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        command=shlex.join(command_line()),
        job=job and [job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)],
    )


def _create(lock: Path, content: Mapping[str, Any]) -> bool:
    """Makes the lock; False if there is one."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, lock) from error
    try:
        file = open(lock, "x", encoding="utf-8")  # noqa: SIM115
    except FileExistsError:
        return False
    except OSError as error:
        raise explained(error, lock) from error
    try:
        with file:
            json.dump(content, file)
    except OSError as error:
        lock.unlink(missing_ok=True)
        raise explained(error, lock) from error
    return True


def _read_lock(lock: Path) -> dict[str, Any]:
    """Who holds it; empty while it is being written, or if it is damaged."""
    try:
        return dict(json.loads(lock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _has_ended(other: Mapping[str, Any], lock: Path) -> bool:
    mine = _holder()
    if not other:  # of a process that was killed, or a disk that was full, as it was written
        with suppress(OSError):
            return time.time() - lock.stat().st_mtime > 10
        return True
    if other.get("host") == mine["host"]:
        return began(other["pid"]) != other["began"]
    # Slurm runs a job again, on another machine: its own earlier attempt.
    job, before = mine["job"], other.get("job")
    return bool(job and before and job[0] == before[0] and job[1] > before[1])


def began(pid: int) -> str | None:
    """When a process of this machine began, in the system's own units; None if it has ended."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    if Path("/proc/self").exists():
        return None
    if os.name != "nt":  # where that call ends the process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
    return ""


def save_text(path: str | os.PathLike, text: str, *, keep: bool = True) -> Path:
    """Writes a text file in UTF-8; a file that is already there is kept, see :func:`keep_old`,
    unless ``keep`` is off.

    Returns:
        ``path``.
    """
    with replacing(path, keep=keep) as temporary:
        # What a file's name holds that is no UTF-8 stays in JSON as it was: an escape.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def save_json(path: str | os.PathLike, payload: Any) -> Path:
    """Writes ``payload`` as JSON; a file that is already there is kept, see :func:`keep_old`.

    Arrays and tensors become lists, paths strings, and NaN and infinities null, which JSON has no
    number for.

    Returns:
        ``path``.
    """
    text = json.dumps(_plain(payload), indent=2, ensure_ascii=False, allow_nan=False)
    return save_text(path, text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value

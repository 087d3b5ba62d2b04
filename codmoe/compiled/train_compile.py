"""Compiles the parts that train side by side, in processes of their own, before the first step.

One step is looked at: it runs uncompiled and keeps no activations. Each call of a part is a piece,
whose forward and backward pass a process compiles into torch's cache on disk
(``TORCHINDUCTOR_CACHE_DIR``). The training reads it there, as later runs and other ranks do: whole,
without tracing its code again, where torch can keep it so.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from mmengine.logging import print_log
from torch import Tensor, nn

import codmoe
from codmoe.compiled.graphs import reason_of
from codmoe.compiled.speed import SETTINGS, InTraining, look_of, mapped
from codmoe.compiled.whole import (
    NotLoaded,
    compiler_settings,
    kept_whole,
    load_whole,
    make_whole,
    note_read,
)
from codmoe.files import save_text
from codmoe.interruption import COMMAND, PARENT, follow_parent, interruption
from codmoe.machine import available_cores, available_memory

HOST_BYTES = 3 * 2**30
"""Host memory of a process that compiles, with the processes that it starts."""
GROWS = 20.0
"""Seconds in which a process takes its memory."""
DEVICE_BYTES = 2**30
"""Memory of a GPU that a process takes before it computes anything."""
KEPT = 3
"""Form of what is kept of a piece."""
PLAIN = (bool, int, float, str, type(None))


class NotCompiled(RuntimeError):
    """A process that was to compile a piece has failed."""


@dataclass
class Piece:
    """One call of a part: what a process needs to compile it.

    Args:
        name: Of the part.
        module: The part without numbers, on the meta device.
        method: What of it is compiled.
        mode: ``torch.compile``'s.
        inputs: Positional and named arguments, on the meta device.
        device: Where they and the module lie.
        autocast: Type of mixed precision, or None.
        settings: Of the process, which torch's cache tells apart.
        look: Of the inputs, as :func:`look_of` says it.
        saved: Bytes that its backward pass reads, at most.
    """

    name: str
    module: nn.Module
    method: str
    mode: str | None
    inputs: tuple[tuple, dict[str, Any]]
    device: str
    autocast: torch.dtype | None
    settings: dict[str, Any]
    look: tuple
    saved: int = 0

    @property
    def label(self) -> str:
        """Name and size, for people."""
        first = next(_tensors(self.inputs), None)
        return self.name if first is None else f"{self.name} {' × '.join(map(str, first.shape))}"

    @property
    def length(self) -> int:
        """Roughly what compiling it takes, as its parameters are what it has operations for."""
        return 1 + sum(1 for _ in self.module.parameters())

    @property
    def device_bytes(self) -> int:
        """Memory of the device that compiling and running it takes, at most."""
        weights = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return self.saved + 2 * weights + DEVICE_BYTES

    def autocasting(self) -> torch.autocast:
        """Mixed precision as in training, for calls within :func:`no_autocast_cache`."""
        kind, enabled = torch.device(self.device).type, self.autocast is not None
        return torch.autocast(kind, self.autocast, enabled=enabled, cache_enabled=False)

    def fingerprint(self) -> str:
        """The same in every process that compiles the same piece to the same code."""
        modules = list(self.module.named_modules())
        told = [
            (KEPT, torch.__version__, codmoe.__version__, _device_name(self.device)),
            compiler_settings(),
            (self.name, self.method, self.mode, str(self.look), str(self.settings)),
            [(n, m.training, type(m).__qualname__, _plain_attributes(m)) for n, m in modules],
            [(n, _kind(t)) for n, t in self.module.named_parameters()],
            [(n, _kind(t)) for n, t in self.module.named_buffers()],
        ]
        digest = hashlib.sha256(repr(told).encode())
        sources = _sources(module for _, module in modules)
        # By content: the order of paths depends on where packages lie.
        for content in sorted(Path(file).read_bytes() for file in sources):
            digest.update(content)
        return digest.hexdigest()[:32]


def _device_name(device: str) -> tuple[str, str]:
    # torch's cache tells GPUs of different numbers apart.
    return device, torch.cuda.get_device_name(device) if device.startswith("cuda") else ""


def _plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    def plain(value: Any) -> bool:
        inner = value if isinstance(value, (tuple, list)) else [value]
        return all(isinstance(one, PLAIN) for one in inner)

    return sorted((k, v) for k, v in vars(module).items() if plain(v) and k != "training")


def _kind(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _sources(modules: Iterator[nn.Module]) -> set[str]:
    found = set()
    for kind in {type(module) for module in modules}:
        with contextlib.suppress(TypeError, OSError):  # defined at a prompt
            found.add(str(inspect.getsourcefile(kind)))
    return {file for file in found if os.path.isfile(file)}


def _tensors(value: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    mapped(value, found.append)
    return iter(found)


def pieces_of(
    parts: Mapping[str, InTraining], step: Callable[[], Any], batch: int | None = None
) -> list[Piece]:
    """The pieces that a step calls the parts for, in their order.

    Args:
        parts: Of :func:`compiled_parts`.
        step: Runs a forward pass under autograd; its activations are not kept.
        batch: Only calls for so many images; others, of the images that were routed to an expert,
            have another size in each step.
    """
    found: dict[tuple, Piece] = {}
    saved = 0

    def drop(tensor: Tensor) -> None:
        nonlocal saved
        saved += 0 if isinstance(tensor, nn.Parameter) else tensor.numel() * tensor.element_size()

    def watch(part: InTraining, args: tuple, kwargs: dict[str, Any]) -> Any:
        look, before = look_of(args, kwargs), saved
        piece = found.get((part.name, look))
        first = next(_tensors((args, kwargs)), None)
        fits = first is not None and not part.failed and batch in (None, len(first))
        if piece is None and first is not None and fits:
            try:
                piece = found[part.name, look] = _piece(part, args, kwargs, look, first.device)
            except Exception as error:  # a module may hold what cannot be copied
                part.give_up(error)
        result = part.plain(*args, **kwargs)
        if piece is not None:
            piece.saved = max(piece.saved, saved - before)
        return result

    for part in parts.values():
        part.watch = watch
    try:
        with torch.autograd.graph.saved_tensors_hooks(drop, _gone):
            step()
    finally:
        for part in parts.values():
            part.watch = None
    return list(found.values())


def _gone(_: None) -> Tensor:
    raise RuntimeError("a backward pass in a step that is only looked at")


def _piece(part: InTraining, args: tuple, kwargs: dict, look: tuple, device: Any) -> Piece:
    memo: dict[int, Any] = {}
    for tensor in (*part.module.parameters(), *part.module.buffers()):
        memo[id(tensor)] = tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(memo[id(tensor)], tensor.requires_grad)
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    memo[id(part)] = None
    module = copy.deepcopy(part.module, memo)
    vars(module).pop(part.method, None)
    return Piece(
        name=part.name,
        module=module,
        method=part.method,
        mode=part.mode,
        inputs=mapped((args, kwargs), _without_numbers),
        device=str(device),
        autocast=dtype if enabled else None,
        look=look,
        settings=_settings(),
    )


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return empty.requires_grad_(tensor.requires_grad)


def _settings() -> dict[str, Any]:
    """Of this process, which torch's cache tells apart or code is made for."""
    return dict(
        threads=torch.get_num_threads(),
        matmul=getattr(torch.backends.cuda.matmul, "fp32_precision", None),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        benchmark=torch.backends.cudnn.benchmark,
    )


def _settle(settings: Mapping[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    torch.backends.cudnn.benchmark = settings["benchmark"]
    now = _settings()
    # Only what differs: torch's cache knows what was set from what is so by default.
    if now["matmul"] != settings["matmul"]:
        setattr(torch.backends.cuda.matmul, "fp32_precision", settings["matmul"])  # noqa: B010
    if now["deterministic"] != settings["deterministic"]:
        torch.use_deterministic_algorithms(settings["deterministic"])


def compile_beforehand(
    parts: Mapping[str, InTraining], pieces: Sequence[Piece], ranks: int = 1
) -> dict[str, Any]:
    """Have those pieces compiled that no run has compiled before. The parts then run compiled for
    these alone; one of which a piece fails runs uncompiled, and says why.

    Args:
        parts: Of :func:`compiled_parts`.
        pieces: Of :func:`pieces_of`.
        ranks: Processes of this run on this host, each of which may call this at the same time.

    Returns:
        ``pieces``, ``compiled`` (here), ``processes``, ``seconds`` (with those of loading),
        ``loaded``, pieces that are not traced again, and ``not_kept``, those of which torch's cache
        keeps kernels alone.
    """
    try:
        return _compile_beforehand(parts, pieces, ranks)
    except OSError as error:  # a cache folder of somebody else's, a full disk
        for part in parts.values():
            part.give_up(error)
        return dict(pieces=len(pieces), compiled=0, processes=0, seconds=0.0, loaded=0, not_kept=[])


def _compile_beforehand(
    parts: Mapping[str, InTraining], pieces: Sequence[Piece], ranks: int
) -> dict[str, Any]:
    started = time.monotonic()
    folder = kept_whole()
    marks = [folder / piece.fingerprint() for piece in pieces]
    device = pieces[0].device.replace(":", "_") if pieces else ""
    with _alone(folder / f"{device}.lock"):
        for piece, mark in zip(pieces, marks, strict=True):
            _load(parts[piece.name], piece, mark)
        wanted = [i for i, mark in enumerate(marks) if not _done(mark)]
        most = max(min(len(wanted), available_cores() // ranks), 1)
        if wanted:
            text = ", ".join(pieces[i].label for i in wanted)
            _log(f"compiling {len(wanted)} pieces in {most} processes, minutes: {text}")
        for i, said in _side_by_side([pieces[i] for i in wanted], most):
            save_text(marks[wanted[i]], json.dumps(said), keep=False)
    told = [json.loads(mark.read_text()) if mark.is_file() else {} for mark in marks]
    for mark in marks:
        note_read(mark)
    for piece, said in zip(pieces, told, strict=True):
        if said.get("error") and not parts[piece.name].failed:
            parts[piece.name].give_up(NotCompiled(said["error"]))
    for name, part in parts.items():
        part.known = {piece.look for piece in pieces if piece.name == name}
    for i in wanted:
        _load(parts[pieces[i].name], pieces[i], marks[i])
    loaded = sum(piece.look in parts[piece.name].whole for piece in pieces)
    seconds = time.monotonic() - started
    not_kept = [
        piece.label for piece, said in zip(pieces, told, strict=True) if said.get("bypassed")
    ]
    if pieces:
        earlier = len(pieces) - len(wanted)
        wanted = [i for i in wanted if "error" not in told[i]]
        _log(
            f"{len(pieces)} pieces to train with: {len(wanted)} compiled now in {seconds:.0f} s, "
            f"{earlier} before, in {folder.parent}; {loaded} need no tracing"
        )
    for label in not_kept:
        _log(f"{label}: torch's cache keeps its kernels alone, and it is traced at each start")
    return dict(
        pieces=len(pieces),
        compiled=len(wanted),
        processes=most if wanted else 0,
        seconds=seconds,
        loaded=loaded,
        not_kept=not_kept,
    )


def _load(part: InTraining, piece: Piece, mark: Path) -> None:
    """Has the part run a piece as it was kept whole."""
    part.whole.pop(piece.look, None)
    try:
        with piece.autocasting():
            part.whole[piece.look] = load_whole(part.plain, _whole_of(mark), mode=piece.mode)
    except FileNotFoundError:
        pass
    except NotLoaded as error:
        _log(f"{piece.label} is compiled anew: {error}")


def _whole_of(mark: Path) -> Path:
    return mark.with_suffix(".whole")


def _alone(path: Path) -> AcquireReturnProxy:
    """Waits for other trainings that compile for the same device, and says so."""
    lock = FileLock(path)
    with contextlib.suppress(Timeout):
        return lock.acquire(timeout=2)
    _log("another training compiles for this device; this one waits for it, minutes")
    return lock.acquire()


_BEGAN = time.time()


def _done(mark: Path) -> bool:
    """Whether a piece was compiled; or has failed since this process began, on another rank."""
    try:
        said = json.loads(mark.read_text())
        if said.get("traced") == "" and not _whole_of(mark).is_file():
            return False
        return "error" not in said or mark.stat().st_mtime > _BEGAN
    except (OSError, ValueError):
        return False


@dataclass
class _Child:
    process: subprocess.Popen
    out: IO[bytes]
    errors: IO[bytes]
    bytes: int
    began: float

    def said(self) -> dict[str, Any]:
        """The last line that it wrote; why it ended, if that is no result."""
        for file in (self.out, self.errors):
            file.seek(0)
        lines = self.out.read().decode(errors="replace").strip().splitlines()
        with contextlib.suppress(IndexError, ValueError):
            return json.loads(lines[-1])
        if self.process.returncode == -9:
            return dict(error="its process was killed; memory may be short")
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return dict(
            error=f"exit code {self.process.returncode}: {lines[-1] if lines else ''}"[:300]
        )


def _side_by_side(pieces: Sequence[Piece], most: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each piece and what its process said, as they end."""
    room, threads = _device_room(pieces), _threads(pieces)
    # The longest first.
    waiting = sorted(range(len(pieces)), key=lambda i: (-pieces[i].length, -pieces[i].saved))
    running: dict[int, _Child] = {}
    started, told = time.monotonic(), 0
    try:
        while waiting or running:
            for i in list(waiting):
                if running and (len(running) >= most or not _fits(pieces[i], running, room)):
                    continue
                waiting.remove(i)
                try:
                    running[i] = _start(pieces[i], threads[i])
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    # A hook of somebody's on a module, say.
                    yield i, dict(error=f"it cannot be given to a process: {error}"[:300])
            time.sleep(0.1)
            for i in [i for i, child in running.items() if child.process.poll() is not None]:
                yield i, running.pop(i).said()
            if interruption.signum:  # before the first step nothing is lost
                interruption.leave()
            if time.monotonic() - started > 60 * (told + 1):
                told += 1
                _log(f"compiled {len(pieces) - len(waiting) - len(running)} of {len(pieces)}")
    finally:
        for child in running.values():
            child.process.kill()
            child.process.wait()


def _fits(piece: Piece, running: Mapping[int, _Child], room: int | None) -> bool:
    """Whether there is memory for one more process, on the host and on the device."""
    now, memory = time.monotonic(), available_memory()
    growing = sum(now - child.began < GROWS for child in running.values())
    if memory is not None and memory < HOST_BYTES * (growing + 1):
        return False
    taken = sum(child.bytes for child in running.values())
    return room is None or taken + piece.device_bytes <= room


def _threads(pieces: Sequence[Piece]) -> list[int]:
    """Of each process, to compile kernels: by the share of its piece, and two a core in all, since
    most of them wait.
    """
    cores, whole = available_cores(), sum(piece.length for piece in pieces)
    return [min(max(round(2 * cores * piece.length / whole), 1), cores) for piece in pieces]


def _device_room(pieces: Sequence[Piece]) -> int | None:
    if not pieces or not pieces[0].device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(torch.device(pieces[0].device))[0]


def _start(piece: Piece, threads: int) -> _Child:
    out, errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
    with tempfile.TemporaryFile() as given:
        pickle.dump(piece, given)
        given.seek(0)
        own = {PARENT: str(os.getpid()), COMMAND: "", "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
        own["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "codmoe.compiled.train_compile"],
            stdin=given,
            stdout=out,
            stderr=errors,
            env=dict(os.environ, **own),
        )
    return _Child(process, out, errors, piece.device_bytes, time.monotonic())


def compile_piece(piece: Piece) -> dict[str, Any]:
    """Compile a piece and run both its passes once, of zeros: kernels are tuned when they first
    run.

    Returns:
        ``seconds``; ``traced``, why it is not kept whole; ``bypassed``, how often torch's cache did
        not keep what was compiled.
    """
    from torch._dynamo.utils import counters

    started, device = time.monotonic(), torch.device(piece.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _settle(piece.settings)
    whole = _whole_of(kept_whole() / piece.fingerprint())
    module = piece.module._apply(lambda t: torch.zeros_like(t, device=device))
    part = InTraining(module, piece.name, piece.mode, piece.method)
    args, kwargs = mapped(
        piece.inputs,
        lambda t: torch.zeros_like(t, device=device).requires_grad_(t.requires_grad),
    )
    run, traced = part.compiled, ""
    with piece.autocasting(), torch._dynamo.config.patch(SETTINGS):
        try:
            run = make_whole(part.plain, whole, (args, kwargs), piece.mode)
        except Exception as error:  # a break in the graph, say; training then traces it
            traced = reason_of(error)
            whole.unlink(missing_ok=True)
        output = run(*args, **kwargs)
    results = [x for x in _tensors(output) if x.requires_grad]
    learning = [x for x in (*_tensors((args, kwargs)), *module.parameters()) if x.requires_grad]
    if results and learning:
        gradients = [torch.zeros_like(x) for x in results]
        torch.autograd.grad(results, learning, gradients, allow_unused=True)
    bypassed = counters["aot_autograd"]["autograd_cache_bypass"]
    seconds = round(time.monotonic() - started, 1)
    return dict(seconds=seconds, traced=traced, bypassed=bypassed)


def _log(text: str) -> None:
    print_log(text, logger="current")


def main() -> None:
    """Of a process that compiles one piece: reads it, says in one line what became of it."""
    follow_parent()
    try:
        # From the training that started this process, through their pipe: no file of anybody's.
        said = compile_piece(pickle.load(sys.stdin.buffer))
    except Exception as error:  # whatever it is, the part then runs uncompiled
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = dict(error=f"{type(error).__name__}: {' '.join(lines[:2])}"[:300])
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()

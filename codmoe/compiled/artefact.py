"""Compiled pieces in a folder: native code, which only the user who wrote it loads again."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codmoe import __version__
from codmoe.compiled.buffers import decision_of, tensors_of_decision
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.graphs import Preparer
from codmoe.files import user_cache
from codmoe.structures import ExpertOutput, RoutingDecision

MANIFEST = "manifest.json"
FORMAT = "compiled"
CONFIG = {
    # Weights are not in the artefact: pieces read those of the model.
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,  # or short biases would be written into the code
}
"""Settings of AOTInductor."""
NOT_WITH_CUDA = (
    "torch 2.11's loader of such code has ended the process where torch is built for CUDA; "
    "compile='inductor' needs no artefact, and torch's cache keeps what it compiles for the next "
    "start"
)
"""Why there is none for a GPU, nor for a CPU beside such a torch: both were seen to end so."""
Key = tuple[Any, ...]


def built_for_cuda() -> bool:
    """Whether this torch could use a GPU, be there one or not."""
    return torch.backends.cuda.is_built()


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
        if manifest["format"] == FORMAT and all(type(number) is int for number in numbers):
            return manifest, hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not that of compiled pieces; {make}")


def circumstances(copies: PartCopies) -> dict[str, Any]:
    """What compiled code depends on, by the name that a message has for it."""
    device = copies.device
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}, CUDA {torch.version.cuda}"
    else:
        name = f"{device.type}, {_processor()}"
    return dict(
        torch=str(torch.__version__),
        device=name,
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
    for file in sorted(files):
        if of_torch not in file.parents and file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
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


def _flat(value: Any) -> list[Tensor]:
    """The tensors of what parts take and return, of which those who call them read these alone."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, RoutingDecision):
        return tensors_of_decision(value)
    if isinstance(value, ExpertOutput):
        return [value.logits]
    return [tensor for each in value for tensor in _flat(each)]


def _like(example: Any, tensors: list[Tensor]) -> Any:
    """``tensors``, which are taken from the list, in the form of an example."""
    if isinstance(example, Tensor):
        return tensors.pop(0)
    if isinstance(example, RoutingDecision):
        return decision_of([tensors.pop(0) for _ in range(4)], example.expert_names)
    return [_like(each, tensors) for each in example]


def key_of(name: str, arguments: tuple) -> Key:
    """What tells a piece from others: the part, and the looks of what it reads."""
    return (name, *map(_looks, _flat(arguments)))


class Recorder(Preparer):
    """Notes what the parts of a model are called with, once for each :func:`key_of`."""

    def __init__(self, device: torch.device):
        super().__init__(device, "eager")
        self.eager = False  # what is noted will be compiled
        self.calls: dict[Key, tuple[str, Callable, tuple]] = {}

    def compiled(self, name: str, function: Callable) -> Callable:
        """``function``, whose calls are noted."""

        def call(*arguments):
            key = key_of(name, arguments)
            if key not in self.calls:
                with torch.inference_mode(False), torch.no_grad():
                    kept = tuple(_like(arguments, [x.clone() for x in _flat(arguments)]))
                if key_of(name, kept) == key:  # code for other strides would read wrong numbers
                    self.calls[key] = (name, function, kept)
            return function(*arguments)

        return call


class _Graph(nn.Module):
    """A part as a function of tensors."""

    def __init__(self, function: Callable, example: tuple):
        super().__init__()
        self.part = getattr(function, "__self__", function)  # of a method the module
        self.function, self.example = [function], [example]  # no submodules

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return _flat(self.function[0](*_like(self.example[0], list(tensors))))


def write_piece(key: Key, function: Callable, arguments: tuple, path: Path) -> dict[str, Any]:
    """Compiles a part for what it was called with into a package; its entry in the manifest.

    Raises:
        Exception: Whatever torch says of a part that it cannot compile.
    """
    from torch._inductor import aoti_compile_and_package

    graph = _Graph(function, arguments)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, tuple(_flat(arguments)), strict=False)
        unnamed = [name for name in program.constants if name not in _tensors(graph)]
        if unnamed:
            raise ValueError(f"{unnamed[0]} is a tensor that is neither parameter nor buffer")
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=CONFIG)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(key=repr(key), file=path.name, sha256=digest)


def _notes() -> Path:
    return user_cache() / "artefacts"


def note_own(folder: Path) -> None:
    """Notes in the user's cache folder that this user wrote an artefact, as it is now.

    Raises:
        OSError: The folder cannot be written.
    """
    notes = _notes()
    notes.mkdir(exist_ok=True)
    (notes / read_manifest(folder)[1]).touch()


class Artefact:
    """Pieces of a folder for the parts of a model.

    Nothing of the folder is loaded before it is known that this user wrote it: a note in the user's
    cache folder has the digest of the manifest, and the manifest those of the packages. What is
    loaded are the very bytes that were compared. Packages are shared objects; nothing is unpickled.

    Args:
        folder: What ``codmoe export --format compiled`` wrote.
        copies: The parts, whose weights the pieces read.

    Attributes:
        refused: Why nothing of it is used, in one sentence; empty if all fits.

    Raises:
        FileNotFoundError, ValueError: There is no artefact.
    """

    def __init__(self, folder: str | Path, copies: PartCopies):
        self.folder, self.copies = Path(folder).expanduser(), copies
        self.manifest, self.digest = read_manifest(folder)
        self.entries: dict[str, Mapping[str, str]] = {}
        self.loaded: dict[Key, Callable | None] = {}
        self.failures: dict[str, str] = {}
        self.refused = self._refusal()
        if not self.refused:
            self.entries = {entry["key"]: entry for entry in self.manifest["pieces"]}

    def _refusal(self) -> str:
        if built_for_cuda():  # nobody's process is to end by a speed-up
            return f"artefact {self.folder} is not loaded: {NOT_WITH_CUDA}"
        again = "make it again with codmoe export --format compiled; compiling meanwhile"
        try:
            own = (_notes() / self.digest).is_file()
        except OSError:
            own = False
        if not own:
            return (
                f"artefact {self.folder} was not written by this user as it is, and native code of "
                f"others is not loaded; {again}"
            )
        now = circumstances(self.copies)
        for name, value in now.items():
            made = self.manifest["made"].get(name)
            if made != value:
                found = "another" if name == "model" else f"{made}, not {value}"
                return f"artefact {self.folder} is for {name} {found}; {again}"
        return ""

    def find(self, name: str, arguments: tuple) -> Callable | None:
        """The piece of a part for such arguments; None if there is none."""
        key = key_of(name, arguments)
        if key not in self.loaded:
            entry = self.entries.get(repr(key))
            self.loaded[key] = None if entry is None else self._load(name, entry)
        return self.loaded[key]

    def _load(self, name: str, entry: Mapping[str, str]) -> Callable | None:
        from torch._inductor import aoti_load_package

        part = self.copies.modules[name]
        try:
            content = (self.folder / entry["file"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['file']} is not the file that was written")
            # Of a single thread, or it would ask the device between launches, which no CUDA graph
            # allows.
            index = -1 if self.copies.device.index is None else self.copies.device.index
            with tempfile.TemporaryDirectory() as private:
                path = Path(private) / "piece.pt2"
                path.write_bytes(content)
                program = aoti_load_package(str(path), run_single_threaded=True, device_index=index)
            mine = {f"part.{key}": value for key, value in _tensors(part).items()}
            read = {key: mine[key] for key in program.get_constant_fqns()}
            # The very tensors, so that the pieces follow the weights.
            program.load_constants(read, check_full_update=True, user_managed=True)
        except Exception as error:
            self.failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None
        return _Loaded(name, program, self.copies.model.expert_names)


class _Loaded:
    """A piece, called and answering as the part does."""

    def __init__(self, name: str, program: Callable, expert_names: tuple[str, ...]):
        self.name, self.program, self.expert_names = name, program, tuple(expert_names)

    def __call__(self, *arguments: Any) -> Any:
        tensors = list(self.program(*_flat(arguments)))
        if self.name == "backbone":
            return tensors
        if self.name == "router":
            return decision_of(tensors, self.expert_names)
        return ExpertOutput(tensors[0]) if self.name.startswith("experts.") else tensors[0]

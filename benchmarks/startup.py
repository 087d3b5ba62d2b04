"""Times how a process begins without and with what an earlier one left, the prepared model and the
first step of a training: python -m benchmarks.startup ensemble/stage3 --json startup.json"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.pieces import as_if_trained, pictures
from benchmarks.step_timing import measure
from codmoe.compiled.prepared import CompiledMoE
from codmoe.console import TextTable
from codmoe.engine.config import load_config, parse_options
from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.files import save_json
from codmoe.inference.export.exporting import export, model_for_export
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.zoo import create_model

ROOT = Path(__file__).resolve().parents[1]
ARTEFACT = "preparation, artefact"
ROWS = {
    "preparation, first": ("prepare", "prepare"),
    "export of the artefact": ("export", "export"),
    "training, first": ("train", "train"),
    "preparation, torch's cache": ("prepare", "prepare"),
    ARTEFACT: ("prepare", "export"),
    "training, second": ("train", "train"),
}
"""What is measured in a process of its own, and whose caches it has; the first three have none."""
COLD = list(ROWS)[:3]
Spec = Mapping[str, Any]


def _prepare(spec: Spec) -> dict[str, Any]:
    """Every piece for one image, on every route."""
    settings = dict(artefact=spec["artefact"]) if spec["artefact"] else dict(backend="inductor")
    model, size = create_model(spec["config"]), spec["size"]
    compile = dict(settings, dtype=spec["dtype"])
    shared: dict[str, Any] = dict(image_size=size, device=spec["device"], batch_size=1)
    prepared = Inferencer(model, compile=compile, **shared).prepared
    assert prepared is not None
    begun = time.perf_counter()
    prepared.warm_up([1], size)
    seconds = time.perf_counter() - begun
    print(prepared.report, flush=True)
    process = time.time() - spec["started"]
    pieces = dict(Counter(piece.how for piece in prepared.pieces))
    found = dict(seconds=seconds, process=process, pieces=pieces)
    return found | dict(
        report=prepared.report.splitlines(), differences=_differences(prepared, size)
    )


def _differences(prepared: CompiledMoE, size: int) -> dict[str, float]:
    """Of probabilities from those of the same copies run uncompiled, once weights have changed."""
    model, images = prepared.model, pictures(4, size, prepared.device)
    as_if_trained(model, size)
    plain = CompiledMoE(model, dtype=prepared.copies.dtype, backend="eager")
    apart = (prepared(images).sigmoid() - plain(images).sigmoid()).abs()
    return dict(max=apart.max().item(), mean=apart.mean().item())


def _export(spec: Spec) -> dict[str, Any]:
    begun = time.perf_counter()
    options: dict[str, Any] = dict(device=spec["device"], dtype=spec["dtype"], check=False)
    model = model_for_export(spec["config"])
    export(model, spec["out"], format="compiled", size=spec["size"], **options)
    return dict(seconds=time.perf_counter() - begun)


def _train(spec: Spec) -> dict[str, Any]:
    """Until the first step is done, of the Runner that trains for real, on synthetic batches."""
    options = dict(compile=True, **spec["options"])
    options["model.backbone.pretrained"] = False
    folder = tempfile.mkdtemp(dir=spec["folder"])
    run = dict(config=spec["config"], options=options, data="synthetic", size=spec["size"])
    run |= dict(started=spec["started"], steps=2, warmup=0, work_dir=folder)
    found = measure(run, "none")
    leave_cpu_process_group()
    first, second = found["seconds"][0]
    return dict(
        seconds=first,
        second_step=second,
        process=found["start_seconds"],
        batch=found["batch_per_process"],
        precision=found["precision"],
    )


WORKERS: dict[str, Callable[[Spec], dict[str, Any]]] = dict(
    prepare=_prepare, export=_export, train=_train
)


def startup(
    config: str,
    *,
    size: int = 448,
    dtype: str = "auto",
    device: str | None = None,
    together: bool = False,
    timeout: float = 900,
    rows: list[str] | None = None,
    options: Mapping[str, Any] | None = None,
    json_file: str | None = None,
) -> dict[str, Any]:
    """Measures every row of :data:`ROWS` in a process of its own, with caches of their own.

    Args:
        config: Config of the model, whose weights are random.
        size: Side of the images in pixels.
        dtype: Of the prepared model.
        device: The first GPU if there is one.
        together: Run the three that begin without caches at once, which takes less time, and is
            slower for each.
        timeout: Seconds after which a process is ended.
        rows: Parts of names of rows to measure; all by default.
        options: Overrides of the config, for the training.
        json_file: Where the figures go.

    Returns:
        ``rows`` by name: ``seconds`` of the work, ``process`` from the start of the process to the
        end of that, ``differences`` of what was prepared from the same run uncompiled; or
        ``error``.

    Raises:
        FileNotFoundError, ValueError: The config is missing or has faults, or no row is named.
    """
    load_config(config, options)  # faults are told before anything is measured
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [row for row in ROWS if not rows or any(part in row for part in rows)]
    if not wanted:
        raise ValueError(f"rows={rows} are in no name of {', '.join(ROWS)}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        spec = dict(config=config, size=size, dtype=dtype, device=device, folder=folder)
        spec |= dict(out=f"{folder}/artefact", options=dict(options or {}))
        runs = {row: _Run(row, spec, Path(folder), timeout) for row in wanted}
        if together:
            for row in COLD:
                if row in runs:
                    runs[row].start()
        try:
            for row, run in runs.items():
                found[row] = run.result()
                said = found[row].get("error") or f"{found[row]['seconds']:.1f} s"
                print(f"{row}: {said}", flush=True)
        finally:
            for run in runs.values():
                if run.process is not None and run.process.poll() is None:
                    run.process.kill()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    result = dict(config=config, size=size, device=name, torch=str(torch.__version__), rows=found)
    result |= dict(together=together, load=os.getloadavg()[0])
    _tell(result)
    if json_file is not None:
        print(f"wrote {save_json(json_file, result)}")
    return result


class _Run:
    """A row: a process that is started once, and its result."""

    def __init__(self, row: str, spec: Spec, folder: Path, timeout: float):
        kind, cache = ROWS[row]
        self.timeout = timeout
        self.process: subprocess.Popen | None = None
        place = folder / row.replace(" ", "_").replace(",", "")
        place.mkdir()
        own = dict(kind=kind, artefact=spec["out"] if row == ARTEFACT else None)
        self.spec = dict(spec, result=str(place / "result.json"), **own)
        self.file, self.log = place / "spec.json", place / "log"
        self.environment = dict(os.environ, XDG_CACHE_HOME=str(folder / f"cache_{cache}"))
        self.environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        if row == ARTEFACT:  # not what torch itself kept of its making
            self.environment["TORCHINDUCTOR_CACHE_DIR"] = str(place / "empty")

    def start(self) -> subprocess.Popen:
        """The process, which is started if it was not."""
        if self.process is None:
            self.file.write_text(json.dumps(dict(self.spec, started=time.time())))
            words = [sys.executable, "-X", "faulthandler", "-m", "benchmarks.startup"]
            words += ["-", "--worker", str(self.file)]
            with self.log.open("w") as log:
                self.process = subprocess.Popen(
                    words, stdout=log, stderr=log, env=self.environment, cwd=ROOT
                )
        return self.process

    def result(self) -> dict[str, Any]:
        """What it found, or ``error``."""
        process = self.start()
        try:
            process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return dict(error=f"not done within {self.timeout:g} s")
        file = Path(self.spec["result"])
        if file.is_file():
            return json.loads(file.read_text())
        text = self.log.read_text(errors="replace").strip()
        return dict(error=_reason(process.returncode, text), log=text[-4000:])


def _reason(code: int, log: str) -> str:
    """Why a process left no result: the signal that ended it, or the last line that it wrote."""
    lines = log.splitlines() or ["no output"]
    if code >= 0:
        return lines[-1][:300]
    # faulthandler writes the innermost call below this line.
    below = [i + 1 for i, line in enumerate(lines[:-1]) if "most recent call first" in line]
    where = lines[below[0] if below else -1].strip()
    return f"ended by {signal.Signals(-code).name}; {where}"[:300]


def _work(file: str) -> None:
    spec = json.loads(Path(file).read_text())
    found = WORKERS[spec["kind"]](spec)
    found.setdefault("process", time.time() - spec["started"])
    save_json(spec["result"], found)


def _tell(result: Mapping[str, Any]) -> None:
    rows = []
    for name, row in result["rows"].items():
        if "error" in row:
            rows.append([name, "failed"])
            continue
        hows = ", ".join(f"{n} × {how}" for how, n in row.get("pieces", {}).items())
        later = f"later steps {row['second_step']:.2f} s" if "second_step" in row else ""
        rows.append([name, f"{row['seconds']:.1f}", f"{row['process']:.1f}", hows or later])
    title = f"{result['config']}, {result['size']} px, {result['device']}, torch {result['torch']}"
    notes = [
        "seconds: of the preparation for one image on every route, or of the first training step",
        "process: from its start, torch's import included, to the end of that",
    ]
    for name, row in result["rows"].items():
        if "differences" in row:
            apart = row["differences"]
            notes.append(
                f"{name}: a probability differs by {apart['max']:.1e} at most, {apart['mean']:.1e} "
                "in the mean, from the same uncompiled"
            )
    if result["together"]:
        notes.append("the first three ran at once, and took longer for it")
    TextTable(["", "seconds", "process", "how"], rows, (0, 3), title, notes).print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="config file, or name of a shipped one (ensemble/stage3)")
    add("--size", type=int, default=448, help="side of the images (448)")
    add("--dtype", default="auto", help="bf16, fp16 or fp32, of the prepared model")
    add("--device", help="cuda, cpu; the first GPU if there is one")
    add("--together", action="store_true", help="run those without caches at once")
    add("--timeout", type=float, default=900, help="seconds for one process (900)")
    add("--rows", nargs="+", help="parts of names of rows, e.g. preparation; all by default")
    add("--json", dest="json_file", help="also write the figures to this file")
    add("--cfg-options", dest="options", nargs="+", metavar="KEY=VALUE", help="of the training")
    add("--worker", help=argparse.SUPPRESS)  # one row
    settings = vars(parser.parse_args())
    worker, config = settings.pop("worker"), settings.pop("config")
    try:
        if worker:
            return _work(worker)
        settings["options"] = parse_options(settings["options"])
        startup(config, **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

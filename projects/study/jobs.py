"""The processes of a study: how one is started, and how long one may be expected to take."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codmoe.engine.checkpoints import AtomicBackend
from codmoe.engine.config import config_root
from codmoe.files import replacing
from codmoe.machine import available_cores
from projects.study.plan import Run
from projects.study.results import condensed, to_text

# A little more than the longest of its kind.
_MARGIN = 1.1
# Seconds that a process may live on after its last file is written.
_LINGER = 30.0


@dataclass(eq=False)
class Job:
    """A run that holds a slot: its training, then its test.

    Attributes:
        gpu: Number of the GPU among those of the study.
        began: Time at which the training started.
        log: Everything its processes print, of all attempts.
        whole: Whether its training is all done here, so that its time says what such runs take.
        shared: Whether another job was on its GPU at any time.
    """

    run: Run
    gpu: int
    began: float
    log: Path
    whole: bool = False
    phase: str = ""
    process: subprocess.Popen = field(init=False)
    launched: float = 0.0
    ended: bool = False
    shared: bool = False

    @property
    def is_heavy(self) -> bool:
        """Whether it takes a large part of a GPU's memory now; a test does not."""
        return self.run.is_heavy and self.phase != "test"

    def launch(self, phase: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process in a group of its own, so that loader workers end with it."""
        self.phase, self.launched, self.ended = phase, time.time(), False
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Exit code of the process, or None while it runs.

        One that has written its last file and does not end, as was seen of trainings on GPUs, is
        ended, and counts as successful.
        """
        code = self.process.poll()
        if code is None and self._idle() > _LINGER:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.ended = True
        return 0 if self.ended else code

    def _idle(self) -> float:
        """Seconds since the last file of this phase was written; 0 before that."""
        file = self.run.work_dir / dict(train="finished.json", test="test.json")[self.phase]
        written = file.stat().st_mtime if file.is_file() else 0.0
        return time.time() - written if written >= self.launched else 0.0

    def send(self, signum: int) -> None:
        """To the whole group; nothing if it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def wait(self, seconds: float) -> None:
        """Until it has ended, by force after so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()

    def tail(self, characters: int = 2000) -> str:
        """The last lines of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def ran_out_of_memory(self) -> bool:
        """Whether the error that ended its last process says so; earlier attempts do not count."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        last = text[text.rfind("\n$ ") + 1 :]
        errors = re.findall(r"^[\w.]*(?:Error|Exception): .*", last, flags=re.MULTILINE)
        return bool(errors) and "out of memory" in errors[-1]


def testing_command(run: Run, arguments: Sequence[str]) -> list[str]:
    """The command line that tests a run; ``arguments`` go to ``tools/test.py`` as they are."""
    tool = Path(config_root()).parent / "tools" / "test.py"
    result = run.work_dir / "test.json"
    command = [sys.executable, str(tool), run.name, str(run.weights), "--experts"]
    return [*command, "--json", str(result), "--work-dir", str(run.work_dir), *arguments]


def device_environment(gpu: int, gpus: int, slots: int) -> dict[str, str]:
    """What a process has to be told to stay on its GPU and its share of the cores.

    Args:
        gpu: Number of its GPU among those of the study.
        gpus: Number of GPUs of the study; 0 for the CPU.
        slots: Processes that run at once, over all GPUs.
    """
    threads = str(max(1, min(4, available_cores() // slots)))
    if not gpus:
        return dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=threads)
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    name = visible[gpu] if gpu < len(visible) else str(gpu)
    return dict(CUDA_VISIBLE_DEVICES=name, OMP_NUM_THREADS=threads)


def estimate(run: Run, runs: Sequence[Run], status: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds that a run may take, by what was measured; 0 where nothing like it has run.

    By the same row with other seeds, else by runs of the same kind in proportion to the epochs.
    """
    same, alike = [], []
    for other in runs:
        measured = status.get(other.label, {})
        if not (measured.get("seconds") and measured.get("epochs")):
            continue
        seconds = float(measured["seconds"]) * run.epochs / float(measured["epochs"])
        if other.row == run.row:
            same.append(seconds)
        elif other.kind == run.kind:
            alike.append(seconds)
    return _MARGIN * max(same or alike, default=0.0)


def read_state(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier call wrote about its runs; empty if there is nothing to be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def record(run: Run, folder: Path) -> None:
    """Make a run's small result of what its test left, and publish it.

    Raises:
        OSError, ValueError, KeyError: The test left nothing that can be read.
    """
    payload = json.loads((run.work_dir / "test.json").read_text(encoding="utf-8"))
    about = dict(row=run.row, seed=run.seed, epochs=run.epochs, fingerprint=run.fingerprint)
    AtomicBackend().put_text(to_text(about | condensed(payload)), run.result)
    publish(run, folder)


def publish(run: Run, folder: Path) -> None:
    """Lay a run's small result into ``folder``; what another config left there keeps its own."""
    target = folder / f"{run.label}.json"
    text = run.result.read_text(encoding="utf-8")
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def say(text: str) -> None:
    """To the terminal at once, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True, file=sys.stdout)

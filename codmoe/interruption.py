"""Ends a process as it is asked to: by a signal, or because the process that started it has gone.

SIGINT, SIGTERM, SIGHUP (a terminal that hangs up) and SIGUSR1 (Slurm's warning) end it with one
sentence and the usual exit code, 128 and the signal's number; a second one ends it at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from codmoe.files import began
from codmoe.messages import command_line, speaks

PARENT = "CODMOE_PARENT"
"""Environment variable: number of the process without which this one is not to run on."""
COMMAND = "CODMOE_COMMAND"
"""Environment variable: the command that goes on, if it is not this process's own; empty where
another process says it."""
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


class Interruption:
    """What this process was asked; there is one, :data:`interruption`."""

    signum = 0
    """The signal that came first, or 0."""
    grace = 20.0
    """Seconds after which the process ends whatever it does; torchrun and Slurm kill after 30."""
    patience = 5.0
    """Seconds after an error until it is taken for the process's own; see :meth:`was_asked`."""
    farewell: Callable[[], str] | None = None
    """What is lost and how to go on, the rest of the sentence."""
    waits = False
    """Whether somebody looks at ``signum`` between his steps and leaves then; else the process ends
    where it is."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Be as new: a later training of this process was asked nothing."""
        vars(self).clear()
        self._active = self._told = False
        self._came = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals while the block runs; in the main thread alone, and once."""
        if self._active or threading.current_thread() is not threading.main_thread():
            yield
            return
        follow_parent()
        # What is ignored stays so: by nohup, or by a script that started this in the background.
        taken = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        earlier = {s: signal.signal(s, self._receive) for s in taken}
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        earlier_end = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(ours,), daemon=True)
        self._active = True
        watcher.start()
        try:
            yield
        except SystemExit:
            if self._told:
                _leave_group(128 + self.signum)
            raise
        finally:
            self._forget()
            signal.set_wakeup_fd(earlier_end)
            theirs.close()
            for signum, handler in earlier.items():
                signal.signal(signum, handler)

    def _receive(self, signum: int, frame) -> None:
        self.signum = self.signum or signum
        if not self.waits and not self._told:
            self.leave()

    def leave(self) -> NoReturn:
        """Says the sentence and ends the process, which cleans up on its way."""
        self._say()
        raise SystemExit(128 + self.signum)

    def was_asked(self) -> bool:
        """Whether this process was asked to end, to be known after an error.

        Of several processes, one that was asked leaves, the others fail in what they wait for from
        it, and the launcher asks them to end when it looks next.
        """
        end = time.monotonic() + self.patience
        while "TORCHELASTIC_RUN_ID" in os.environ and not self.signum and time.monotonic() < end:
            time.sleep(0.05)
        return bool(self.signum)

    def _say(self) -> None:
        if self._told:
            return
        self._told = True
        if speaks():
            rest = self.farewell() if self.farewell else ""
            print(f"interrupted by {signal.Signals(self.signum).name}{rest}", file=sys.stderr)
            sys.stderr.flush()

    def _watch(self, ours: socket.socket) -> None:
        """Of a thread: the main one may be waiting for a process that has gone, for ever."""
        ours.settimeout(1.0)
        while True:
            with suppress(TimeoutError):
                came = ours.recv(64)
                if not came:
                    return
                asked = [number for number in came if number in SIGNALS]
                # A terminal's interrupt comes twice: from it, and from torchrun.
                if asked and self._came and time.monotonic() - self._came > 1:
                    os._exit(128 + self.signum)
                if asked and not self._came:
                    self.signum, self._came = self.signum or asked[0], time.monotonic()
            if self._came and time.monotonic() - self._came > self.grace:
                with suppress(Exception):
                    self._say()
                os._exit(128 + self.signum)

    def forget(self) -> None:
        """In a child, such as a loader's worker: it ends when this process ends it."""
        if self._active:
            self._active = False
            with suppress(ValueError):
                signal.set_wakeup_fd(-1)
                for signum in SIGNALS:
                    term = signum == signal.SIGTERM
                    signal.signal(signum, signal.SIG_DFL if term else signal.SIG_IGN)


@contextmanager
def holding_back() -> Iterator[None]:
    """Blocks SIGTERM in this thread, and in processes that are started meanwhile, as loaders'
    workers, until they call :func:`obey_parent_alone`.
    """
    if not hasattr(signal, "sigwaitinfo"):  # where that call unblocks nothing
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone() -> None:
    """Has a loader's worker end by a SIGTERM of its parent's alone.

    ``timeout``, ``scancel`` and service managers send it to all processes. The parent is to answer
    it, and needs the worker until its step is done. Where a system does not tell who sent a signal
    (macOS), nothing changes.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def follow_parent() -> None:
    """Has this process asked to end once the one that :data:`PARENT` names has gone."""
    parent = int(os.environ.pop(PARENT, None) or 0)
    if parent:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    start = began(parent)
    while start is not None and began(parent) == start:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def own_command() -> str:
    """The command that started this process; empty where another process says it."""
    return os.environ.get(COMMAND, shlex.join(command_line()))


def going_on(saved: bool | None) -> str:
    """The end of a farewell: the command that goes on.

    Args:
        saved: Whether there is something to resume; None for a command that knows itself.
    """
    command = own_command()
    if not command:
        return ""
    if saved and not {"--resume", "--auto-resume"} & set(shlex.split(command)):
        command += " --resume"
    return f"; {'start again' if saved is False else 'go on'} with: {command}"


def _leave_group(code: int) -> None:
    """Leaves a process group at once, whose tear-down by Python may abort or wait for others."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


interruption = Interruption()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=interruption.forget)

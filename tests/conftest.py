"""Settings under which miniatures are quick on two cores."""

import gc
import os
import signal
import subprocess
import sys

# Two workers of pytest on two cores: more threads than cores make OpenMP spin for minutes. And a
# process whose OpenMP has threads cannot be forked (`miniature.ranks`), so whatever was asked for.
os.environ["OMP_NUM_THREADS"] = "1"

# What runs behind a shell's `&` or `nohup` ignores these, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import miniature  # noqa: F401
import pytest
import torch

torch.set_num_threads(1)
# Nothing imported is ever garbage; mmengine looks for garbage with every data set.
gc.freeze()
gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def ended():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def processes():
    """A list of processes that are killed when the test ends, however it ends."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.communicate()

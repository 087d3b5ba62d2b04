"""Processes that are asked to end: by a signal, twice, or because their parent has gone."""

import os
import signal
import subprocess
import sys
import time

import pytest
from miniature import ROOT

from codmoe.interruption import COMMAND, PARENT, going_on

START = "import os, sys, time; from codmoe.interruption import *\n"
WAIT = "print('ready', flush=True)\nwhile True: time.sleep(0.1)"
HANDLED = f"{START}with interruption.handled():\n    "


@pytest.fixture
def start(processes):
    """``start(script)``: a process that runs the script, once it has printed a line."""

    def run(script, **settings):
        env = dict(os.environ, PYTHONPATH=str(ROOT))
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, env=env, **settings
        )
        processes.append(process)
        process.line = process.stdout.readline().strip()
        return process

    return run


def end(process):
    """Exit code and standard error."""
    told = process.communicate(timeout=120)[1]
    return process.returncode, told


def indented(script):
    return script.replace("\n", "\n    ")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_in_one_sentence(start, name):
    process = start(HANDLED + indented(WAIT))
    signum = getattr(signal, name)
    process.send_signal(signum)
    assert end(process) == (128 + signum, f"interrupted by {name}\n")


def test_an_error_since_another_process_left_is_no_error(start, monkeypatch, tmp_path):
    """The launcher asks the others a moment after one has left; they failed meanwhile."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.chdir(tmp_path)
    script = (
        "interruption.waits, interruption.patience = True, {}\n"
        "from codmoe.cli import one_sentence\n"
        "with one_sentence():\n"
        "    print('ready', flush=True)\n"
        "    import torch; torch.zeros(2).reshape(3)"
    )
    asked = start(HANDLED + indented(script.format(60)))
    time.sleep(0.3)
    asked.send_signal(signal.SIGTERM)
    assert end(asked) == (128 + signal.SIGTERM, "interrupted by SIGTERM\n")
    assert not list(tmp_path.rglob("*.log"))
    code, told = end(start(HANDLED + indented(script.format(0.2))))
    assert code == 1 and told.startswith("error: unexpected RuntimeError (shape")


def test_who_looks_between_his_steps_ends_there(start):
    script = (
        "interruption.waits, interruption.farewell = True, lambda: ' after step 3'\n"
        "print('ready', flush=True)\n"
        "while not interruption.signum: time.sleep(0.1)\n"
        "print('cleaned up'); interruption.leave()"
    )
    process = start(HANDLED + indented(script))
    process.send_signal(signal.SIGTERM)
    out, told = process.communicate(timeout=120)
    assert (out, told) == ("cleaned up\n", "interrupted by SIGTERM after step 3\n")
    assert process.returncode == 143


def test_a_second_signal_ends_at_once(start):
    process = start(
        HANDLED + indented(f"interruption.waits, interruption.grace = True, 1e9\n{WAIT}")
    )
    process.send_signal(signal.SIGINT)
    for _ in range(20):
        time.sleep(1.5)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
    assert end(process) == (130, "")


def test_who_never_looks_is_ended_with_the_sentence(start):
    process = start(HANDLED + indented(f"interruption.waits, interruption.grace = True, 1\n{WAIT}"))
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "interrupted by SIGTERM\n")


def test_what_nohup_ignores_stays_ignored(start):
    ignore = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{HANDLED}"
    process = start(ignore + indented(WAIT))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "interrupted by SIGTERM\n")


def test_who_loses_its_parent_ends(start):
    inner = HANDLED + indented("print(os.getppid(), flush=True)\n" + WAIT)
    outer = (
        f"{START}import subprocess\n"
        f"env = dict(os.environ, {PARENT}=str(os.getpid()))\n"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}], env=env).wait()"
    )
    parent = start(outer)
    assert parent.line == str(parent.pid)
    parent.kill()
    # Standard error is closed once the child, which holds it as well, has ended.
    assert end(parent) == (-signal.SIGKILL, "interrupted by SIGTERM\n")


def test_a_forked_child_is_left_to_its_parent(start):
    script = (
        "child = os.fork()\n"
        "if child: print('ready', flush=True); os.waitpid(child, 0); sys.exit(3)\n"
        "time.sleep(4); os._exit(0)"
    )
    process = start(HANDLED + indented(script), start_new_session=True)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout), signal.SIGINT)  # as a terminal sends it to all
    assert end(process) == (3, "")


@pytest.mark.parametrize("taken", [1, 0], ids=["at work", "starting"])
def test_a_signal_to_all_leaves_the_loaders_workers_to_their_parent(start, taken):
    """``timeout`` and ``scancel`` send it to all: the step that is under way needs its samples."""
    script = (
        f"if not {taken}: os.register_at_fork(after_in_child=lambda: time.sleep(2))\n"
        "from codmoe.engine.runner import CODRunner\n"
        "samples = dict(type='DefaultSampler', shuffle=False)\n"
        "loader = CODRunner.build_dataloader(dict(dataset=list(range(4)), sampler=samples,\n"
        "    batch_size=1, num_workers=2, persistent_workers=True))\n"
        "interruption.waits, batches = True, iter(loader)\n"
        f"[next(batches) for _ in range({taken})]; print('ready', flush=True)\n"
        "while not interruption.signum: time.sleep(0.1)\n"
        "time.sleep(1)\n"
        "print(len(list(batches)), flush=True); interruption.leave()"
    )
    process = start(HANDLED + indented(script), start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    out, told = process.communicate(timeout=120)
    assert (out, told) == (f"{4 - taken}\n", "interrupted by SIGTERM\n")
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):  # nor is a worker left
        os.killpg(process.pid, 0)


def test_the_command_that_goes_on(monkeypatch):
    monkeypatch.delenv(COMMAND, raising=False)
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "my config.py"])
    assert going_on(True) == "; go on with: python tools/train.py 'my config.py' --resume"
    assert going_on(False) == "; start again with: python tools/train.py 'my config.py'"
    assert going_on(None) == "; go on with: python tools/train.py 'my config.py'"
    monkeypatch.setenv(COMMAND, "bash tools/dist_train.sh c.py 2 --resume")
    assert going_on(True) == "; go on with: bash tools/dist_train.sh c.py 2 --resume"
    monkeypatch.setenv(COMMAND, "")  # run_stages says it
    assert going_on(True) == ""

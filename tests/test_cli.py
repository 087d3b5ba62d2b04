"""Command lines end in one sentence, whatever went wrong."""

import os
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from miniature import ROOT

from codmoe.cli import DEBUG, main, one_sentence
from codmoe.commands.options import option
from codmoe.datasets.splits import complete_split
from codmoe.engine.config import load_config
from codmoe.messages import listed


class Bad(torch.utils.data.Dataset):
    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.fail()


def on_purpose():
    load_config("no/such")


def in_a_library():
    torch.zeros(2).reshape(3)


def ended(function, folder=None):
    with pytest.raises(SystemExit) as caught, one_sentence(Namespace(work_dir=folder)):
        function()
    return caught.value.code


def raised(error):
    raise error


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (on_purpose, "config 'no/such' does not exist; valid names"),
        (lambda: complete_split(dict(sed=1)), "'seed'"),
        (lambda: Path("/no/such").read_text(), "error: '/no/such': No such file or directory"),
        (lambda: Path("/tmp").read_text(), "error: '/tmp': Is a directory"),
        (lambda: os.stat(b"/no/s\xffch"), "No such file"),
        (lambda: os.rename("/no/a", "/no/b"), "'/no/a' and '/no/b': No such file"),
        (lambda: raised(ValueError("of a user's module")), "error: of a user's module"),
        (lambda: raised(torch.OutOfMemoryError("CUDA out of memory. X")), "a smaller batch"),
        (lambda: raised(MemoryError()), "out of memory; "),
    ],
)
def test_a_mistake_is_one_sentence(function, words):
    said = ended(function)
    assert said.startswith("error: ") and words in said and "\n" not in said


def test_a_fault_of_ours_keeps_its_traceback(tmp_path):
    for function, kind in ((in_a_library, "RuntimeError"), (lambda: listed(3), "TypeError")):
        said = ended(function, tmp_path / "run")
        assert said.startswith(f"error: unexpected {kind} (") and "please report it" in said
        (log,) = (tmp_path / "run").glob("error-*.log")
        assert str(log) in said and "Traceback" in log.read_text() and "\n" not in said
        log.unlink()
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "error-" in ended(in_a_library, blocked), "where the work dir cannot be, elsewhere"


def test_errors_of_worker_processes(tmp_path):
    def loader(fail):
        list(torch.utils.data.DataLoader(Bad(fail), num_workers=1))

    def pool(fail):
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as workers:
            workers.submit(fail).result()

    for run in (loader, pool):
        said = ended(lambda run=run: run(on_purpose))
        assert said.startswith("error: config 'no/such' does not exist; valid names")
        said = ended(lambda run=run: run(in_a_library), tmp_path)
        assert said.startswith("error: unexpected RuntimeError ")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(FileNotFoundError), one_sentence():
        on_purpose()
    monkeypatch.setenv(DEBUG, "")
    monkeypatch.setattr(sys, "argv", ["tool", "--debug"])
    with pytest.raises(FileNotFoundError):
        main(lambda args: on_purpose(), description="x")


def test_exit_codes(monkeypatch, capsys):
    def run(code, *words):
        monkeypatch.setattr(sys, "argv", ["tool", *words])
        with pytest.raises(SystemExit) as caught:
            main(lambda args: code, option("--n", type=int), description="x")
        return caught.value.code

    assert run(None) is None and run(1) == 1
    assert run(0, "--m", "1") == 2 and "unrecognized arguments" in capsys.readouterr().err
    assert ended(lambda: raised(KeyboardInterrupt())) == 130


def test_options_of_several_values_add_up_and_replace_their_default(monkeypatch):
    """Of those given twice the first was dropped without a word."""

    def given(*words, **settings):
        seen = []
        monkeypatch.setattr(sys, "argv", ["tool", *words])
        with pytest.raises(SystemExit):
            main(
                lambda args: seen.extend(args.n),
                option("-n", nargs="+", **settings),
                description="",
            )
        return seen

    assert given("-n", "1", "2", "-n", "3") == ["1", "2", "3"]
    assert given("-n", "1", "-n", "2", default=[]) == ["1", "2"]
    assert given("-n", "1", "2", default=["8"]) == ["1", "2"] and given(default=["8"]) == ["8"]


def test_a_pipe_that_closes_and_a_name_that_is_no_text():
    script = (
        "from codmoe.cli import main\n"
        "def run(args):\n"
        "    for i in range(100_000):\n"
        "        print('line', i, '\\udcff')\n"
        "main(run, description='x')\n"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8:strict")
    shell = '"$0" -c "$1" | head -1'
    command = ["bash", "-c", shell, sys.executable, script]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout == "line 0 \\udcff\n" and done.stderr == ""

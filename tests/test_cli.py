"""Command lines end in one sentence, whatever went wrong."""

import os
import re
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from miniature import ROOT

from codmoe.cli import DEBUG, Parser, command, main, one_sentence
from codmoe.commands import COMMANDS
from codmoe.commands.options import QUIET, on_gpus, option
from codmoe.datasets.splits import complete_split
from codmoe.engine.config import load_config
from codmoe.interruption import going_on
from codmoe.messages import listed, note


class Bad(torch.utils.data.Dataset):
    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.fail()


class Badly:
    def __str__(self):
        return str(1 // 0)


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
        (lambda: raised(RuntimeError("Symlink loop from 'a'")), "a link that leads back"),
    ],
)
def test_a_mistake_is_one_sentence(function, words):
    said = ended(function)
    assert said.startswith("error: ") and words in said and "\n" not in said


def test_a_fault_keeps_its_traceback_and_says_whose_file_it_is_in(tmp_path):
    own = re.escape(f"in {__file__}:") + r"\d+, which is not codmoe's; the traceback is in"
    ours = r"at messages.py:\d+; please report it with"
    for function, words in (
        (in_a_library, rf"RuntimeError \(.*\) {own}"),
        (lambda: listed(3), rf"TypeError \(.*\) {ours}"),
        (lambda: listed([Badly()]), rf"ZeroDivisionError \(.*\) {own}"),  # by way of ours
    ):
        said = ended(function, tmp_path / "run")
        assert re.match(f"error: unexpected {words}", said)
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


NOT_YET = """
import sys
from codmoe.cli import command

def said(*words):
    sys.argv = ["codmoe", *words]
    try:
        command()
    except SystemExit as leave:
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        print(leave.code if isinstance(leave.code, int) else 1, *words[:2], file=sys.stderr)
    heavy = {"torch", "mmengine", "cv2", "numpy"} & set(sys.modules)
    assert not heavy, (words, heavy)

said("--help")
said("predict", "--help")
said("prdict", "x.jpg")
said("predict", "x.jgp", "--out", "maps")
said("predict", "x.jpg", "--ot", "maps")
said("predict", "x.jpg", "--out", "maps", "--checkpoint", "small_ensembel.safetensors")
said("train", "ensemble/stage33")
said("train", "ensemble/stage3", "--cfg-options", "lr")
said("compare", "none.json")
"""
SAID = """0 --help
0 predict --help
error: no command 'prdict'; did you mean 'predict'? (codmoe --help shows what it takes)
2 prdict x.jpg
error: x.jgp is no file or folder; give one that is there; did you mean 'x.jpg'?
1 predict x.jgp
error: unrecognized arguments: --ot maps; did you mean --out? (codmoe predict --help shows what \
it takes)
2 predict x.jpg
error: checkpoint small_ensembel.safetensors does not exist; did you mean \
'small_ensemble.safetensors'?
1 predict x.jpg
error: config 'ensemble/stage33' does not exist; did you mean 'ensemble/stage3' or \
'ensemble/stage3_cod' or 'ensemble/stage3_soup'?
1 train ensemble/stage33
error: argument --cfg-options: 'lr' is not key=value (codmoe train --help shows what it takes)
2 train ensemble/stage3
error: The result file none.json does not exist; make it with --json of codmoe test or codmoe eval
1 compare none.json
"""


def test_wrong_usage_is_answered_before_torch_is_imported(tmp_path):
    for name in ("small_ensemble.safetensors", "x.jpg"):
        (tmp_path / name).touch()
    env = dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS="100")
    script = [sys.executable, "-c", NOT_YET]
    done = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == SAID
    assert "masks of images" in done.stdout and "--threshold" in done.stdout


def test_every_command_is_there_and_every_tool_calls_one():
    files = {path.stem for path in (ROOT / "codmoe/commands").glob("*.py")}
    names = {name for group in COMMANDS.values() for name in group}
    assert files - {"__init__", "options"} == {f"{name}_command" for name in names}
    tools = [path for path in (ROOT / "tools").rglob("*.py") if path.name != "dist_run.py"]
    called = [re.findall(r'tool\("(\w+)"\)', path.read_text())[0] for path in tools]
    assert len(called) > 10 and set(called) <= names
    for name in names:
        found = import_module(f"codmoe.commands.{name}_command")
        assert f"codmoe {name}" in found.__doc__
        Parser("x").take(found.OPTIONS)


COMPLETE = """
eval "$(codmoe --completion bash)"
try() {
  COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDS=($1)
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
  _python_argcomplete codmoe
  echo "${COMPREPLY[*]}"
}
try "codmoe st"
try "codmoe predict --thr"
try "codmoe train quick"
try "codmoe compare to_come.json --plots pd"
complete -p codmoe
"""


def test_bash_completes_commands_options_and_configs(tmp_path):
    program = tmp_path / "codmoe"
    program.write_text(f"#!{sys.executable}\nfrom codmoe.cli import command\ncommand()\n")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = dict(os.environ, PYTHONPATH=str(ROOT), PATH=path)
    done = subprocess.run(["bash", "-c", COMPLETE], env=env, capture_output=True, text=True)
    stages = " ".join(f"quickstart/stage{i}" for i in (1, 2, 3))
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[:4] == ["stages", "--threshold", stages, "pdf"], done.stderr
    assert lines[4].endswith("-F _python_argcomplete codmoe")


def test_quiet_leaves_errors_alone(capfd, monkeypatch):
    def run(args):
        print("a table")
        os.system("echo a child")
        note("by the way")
        sys.exit("error: no good")

    for words, out in (([], ["a child", "a table"]), (["--quiet"], [])):
        monkeypatch.setattr(sys, "argv", ["tool", *words])
        with pytest.raises(SystemExit, match="no good"):
            main(run, QUIET, description="x")
        said = capfd.readouterr()
        assert sorted(said.out.splitlines()) == out and ("by the way" in said.err) == bool(out)
    assert "CODMOE_QUIET" not in os.environ


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("/usr/bin/codmoe", "codmoe train x"),
        ("/site/codmoe/__main__.py", "python -m codmoe train x"),
        ("tools/train.py", "python tools/train.py train x"),
    ],
)
def test_the_command_that_goes_on_is_one_to_type(program, line, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "train", "x"])
    assert going_on(None) == f"; go on with: {line}"


def test_gpus_hands_over_to_torchrun(monkeypatch, tmp_path):
    class Handed(Exception):
        pass

    def execute(*given):
        raise Handed(given)

    monkeypatch.setattr(os, "execvpe", execute)
    words = ["train", "quickstart/stage1", "--gpus", "2", "--work-dir", "my work"]
    monkeypatch.setattr(sys, "argv", ["/bin/codmoe", *words])
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(Handed) as handed:
        command()
    ((program, line, environment),) = handed.value.args
    tools = ROOT / "tools"
    assert program == "bash"
    assert line == ["bash", f"{tools}/dist_run.sh", f"{tools}/train.py", "2", *words[1:]]
    assert environment["CODMOE_COMMAND"] == f"codmoe {' '.join(words[:-1])} 'my work'"
    assert environment["PYTHON"] == sys.executable
    # In each of the processes it is an ordinary training.
    on_gpus("train", Namespace(gpus=2, launcher="pytorch", words=[]))

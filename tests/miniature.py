"""Trainings of seconds: configs that inherit the quickstart's, with a handful of small images."""

import importlib
import itertools
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yapf.yapflib.yapf_api
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from codmoe.cli import command
from codmoe.engine.config import load_config
from codmoe.engine.launch import prepare
from codmoe.registry import HOOKS, MODELS

STRANGE = (
    *("a|b", "a<b>&", "[x]", "[/]", "line\nbreak", "\x1b[31mred", "not\udcffutf8", "tab\t", "$x_$"),
    *(
        "[a](b)",
        "*b*",
        "`c`",
        "=1+1",
        "_under",
        "-minus",
        "#1 %",
        "{}",
        "\\",
        "'\"",
        " ",
        "\u202egnp",
        "漢",
        "%s",
    ),
)
"""Names that a file of a stranger may have."""
ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
MINIATURES = dict(
    sinet=dict(type="SINetExpert", channels=16),
    pranet=dict(type="PraNetExpert", channels=16, deep_channels=16, shallow_channels=16),
    zoomnet=dict(type="ZoomNetExpert", channels=16),
    ujsc=dict(type="UJSCExpert", channels=16, confidence_channels=16),
)
NARROW = dict(
    sinet=dict(type="SINetExpert", channels=8),
    pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
)
"""Two experts that are narrower still."""
NARROW_MODEL = dict(
    backbone=dict(type="TimmPyramid", name="pvt_v2_b0", pretrained=False),
    experts=dict(NARROW, zoomnet=dict(type="ZoomNetExpert", channels=12)),
    router=dict(type="EvidenceRouter", width=16),
    combiner=dict(type="ProbabilityCombiner", learn_temperature=True),
    top_k=2,
)
ONE_EXPERT = dict(model=dict(experts=dict(pranet=None, ujsc=None, zoomnet=None)))
TWO_EXPERTS = dict(model=dict(experts=dict(ujsc=None, zoomnet=None)))
# In the place of the quickstart's: narrow, and at the published scales and strides.
WIDTHS = dict(
    sinet=dict(channels=16, output_stride=8),
    pranet=dict(channels=16, deep_channels=32, shallow_channels=16, output_stride=8),
    zoomnet=dict(channels=16, input_scales=(0.5, 1.0, 1.5)),
    ujsc=dict(channels=16, confidence_channels=16, input_scale=1.0),
)
# PVT-v2-B0 with one block a stage and a tenth of its channels.
SMALL_BODY = dict(
    timm_args=dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32), num_heads=(1, 2, 2, 4))
)
_count = itertools.count(1)
multiprocessing.set_forkserver_preload(["codmoe.engine.launch", "codmoe.engine.testing"])
# mmengine lays out a config five times a training, which takes as long as all else in a miniature.
yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)


@HOOKS.register_module()
class StopAfterFirstEpoch(Hook):
    """Ends a longer training after its first validation, as an interruption would."""

    priority = "LOWEST"

    def after_val_epoch(self, runner, metrics=None):
        runner.train_loop.stop_training = True


STOP = dict(
    custom_imports=dict(imports=["miniature"]), custom_hooks=[dict(type="StopAfterFirstEpoch")]
)


@HOOKS.register_module()
class SignalAt(Hook):
    """Sends SIGTERM to its own process, of one rank, in a step."""

    def __init__(self, iteration, rank=0):
        self.iteration, self.rank = iteration, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.iter, get_rank()) == (self.iteration, self.rank):
            os.kill(os.getpid(), signal.SIGTERM)


def signal_at(iteration, rank=0):
    hook = dict(type="SignalAt", iteration=iteration, rank=rank)
    return dict(custom_imports=dict(imports=["miniature"]), custom_hooks=[hook])


def images(length, pipeline=None):
    loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
    dataset = dict(length=length, image_size=SIZE)
    # Without random augmentation, whose state no checkpoint holds.
    return dict(loader, dataset=dict(dataset, pipeline=pipeline) if pipeline else dataset)


def merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        both = both and not value.get("_delete_")
        result[key] = merged(result[key], value) if both else value
    return result


def write_config(folder, stage=1, *changes, epochs=1):
    """A config file in ``folder``: the quickstart's stage on 8 images of 64 px, and ``changes``."""
    test = images(5)
    dataset = test.pop("dataset")
    test["dataset"] = dict(datasets=dict(Synthetic=dataset))
    test.pop("persistent_workers")
    settings = dict(
        checkpoint_dir=str(Path(folder) / "weights"),
        train_cfg=dict(max_epochs=epochs, val_interval=1),
        train_dataloader=images(8, [dict(type="LoadCODPair"), dict(type="PackCODInputs")]),
        val_dataloader=images(4),
        test_dataloader=test,
        default_hooks=dict(logger=dict(interval=1)),
    )
    bodies = [change.get("model", {}).get("backbone") or {} for change in changes]
    body = dict(_delete_=True, type="TimmPyramid", name="pvt_v2_b0", pretrained=False)
    body |= {} if any("type" in body for body in bodies) else SMALL_BODY
    settings["model"] = dict(backbone=body, experts=WIDTHS)
    # Nothing is pretrained: all of it learns at one rate, and a high one.
    rate = dict(lr_mult=1.0)
    settings["optim_wrapper"] = dict(
        optimizer=dict(lr=5e-4 if stage == 3 else 1e-3),
        paramwise_cfg=dict(custom_keys={"backbone.body": rate}),
    )
    if stage != 2:
        settings["model"]["frozen"] = ()
    if stage == 1:
        settings["init_from"] = None
        settings["model"]["expert_execution"] = "sequential"
    if stage == 2:
        settings["default_hooks"]["frozen_cache"] = dict(views=4)
    if stage > 1:
        settings["model"]["router"] = dict(width=16)
        settings["model"]["top_k"] = 2  # of as few experts as tests have
    for change in changes:
        settings = merged(settings, change)
    if stage == 1 and settings["init_from"]:
        settings["init_from"]["_delete_"] = True  # not beside the quickstart's file
    # mmengine names what is global after file and second: no two alike.
    path = Path(folder) / f"stage{stage}_{next(_count)}.py"
    lines = [f"_base_ = [{str(ROOT / f'configs/quickstart/stage{stage}.py')!r}]"]
    lines += [f"{key} = {value!r}" for key, value in settings.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def prepared(config, work_dir, **changes):
    """The config, ready for ``train`` and ``test``."""
    cfg = load_config(config)
    cfg.merge_from_dict(changes)
    return prepare(cfg, work_dir=str(work_dir))


def build(config):
    """A fresh model of a config."""
    cfg = load_config(config) if not isinstance(config, Config) else config
    return MODELS.build(cfg.model)


def weights(path):
    """State dict of a weights file, read without running code."""
    return torch.load(path, weights_only=True)["state_dict"]


def log_of(work_dir):
    """Everything that runs in ``work_dir`` logged."""
    return "".join(path.read_text() for path in sorted(Path(work_dir).glob("*/*.log")))


def call(monkeypatch, tool, *arguments):
    """Runs ``tools/<tool>.py`` or a module's ``main``; what it would exit with, or None."""
    path = str(ROOT / "tools" / f"{tool}.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    try:
        if "." in tool:
            importlib.import_module(tool).main()
        else:
            runpy.run_path(path, run_name="__main__")
    except SystemExit as leave:
        return leave.code
    return None


def run_command(monkeypatch, *words):
    """Runs ``codmoe`` in this process; what it would exit with, or None."""
    monkeypatch.setattr(sys, "argv", ["codmoe", *map(str, words)])
    try:
        command()
    except SystemExit as leave:
        return leave.code
    return None


@contextmanager
def file_size(limit):
    """No file of this process may grow beyond so many bytes, as under ``ulimit -f``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks(function, *arguments):
    """Runs ``function(rank, *arguments)`` in two processes. They are forked from one that has
    imported the package, which takes seconds, and nothing else: a GPU's threads survive no fork.

    Raises:
        TimeoutError: They have not ended in five minutes, as when that one process was killed.
    """
    two = mp.start_processes(function, arguments, nprocs=2, join=False, start_method="forkserver")
    deadline = time.monotonic() + 300
    while not two.join(timeout=5):
        if time.monotonic() > deadline:
            for process in two.processes:
                process.kill()
            raise TimeoutError(f"two ranks of {function.__name__} have not ended in five minutes")


def on_two_ranks(tool, *arguments, cwd):
    """As :func:`bash` runs ``dist_train.sh``, but for the launcher; raises what a rank raises."""
    ranks(_tool_on_rank, free_port(), tool, arguments, cwd)


def _tool_on_rank(rank, port, tool, arguments, cwd):
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_PORT=port)
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    code = call(pytest.MonkeyPatch(), tool, *arguments, "--launcher", "pytorch")
    if code:
        raise RuntimeError(code)


def bash(script, *arguments, cwd):
    # For the hook of miniature.STOP, and what a test lays beside its config.
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHON=sys.executable)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(cwd)])
    command = ["bash", str(ROOT / "tools" / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], msg=lambda m, k=key: f"{k}: {m}", **tolerance)


class Interrupt(Exception):
    """Ends a training in the middle."""


@contextmanager
def interrupted_at(file, seconds=150):
    """Sends SIGTERM to this process once the file is there, or has not come in so many seconds."""
    leave, deadline = threading.Event(), time.time() + seconds

    def watch():
        while not leave.wait(0.1):
            if file.is_file() or time.time() > deadline:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        leave.set()
        watcher.join()

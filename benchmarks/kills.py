"""Kills trainings of all three stages at named and random moments, and compares how they end.

Each trial ends a stage by SIGKILL, starts ``run_stages`` again, and holds what it leaves against
the uninterrupted run: best weights and last checkpoint to the last bit, best epoch and score. Every
operation on a file in the run's folders is a named moment (checkpoint, best weights,
``last_checkpoint``, ``finished.json``, the marks between stages), killed before it and a little
after. The model is a toy; hooks, loaders, router and files are the real ones.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with OpenMP threads cannot be forked

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yapf.yapflib.yapf_api
from torch import nn

from codmoe.engine import stages
from codmoe.engine.checkpoints import read_meta, read_weights
from codmoe.engine.config import load_config
from codmoe.engine.launch import prepare, train
from codmoe.models.backbones.base import STRIDES, Backbone
from codmoe.models.experts.base import Expert
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32


@MODELS.register_module()
class ToyBackbone(Backbone):
    """A convolution a level, with batch norm and dropout."""

    channels = (4, 4, 4, 4)
    size_divisor = 32

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, 3, s, 1), nn.BatchNorm2d(4), nn.Dropout(0.1))
            for s in STRIDES
        )

    def forward(self, images):
        return [level(images) for level in self.levels]


@MODELS.register_module()
class ToyExpert(Expert):
    """One convolution on the finest level."""

    def __init__(self, *, in_channels, dropout=0.0):
        super().__init__(in_channels=in_channels)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(4, 1, 3, 1, 1))

    def forward(self, images, pyramids):
        return ExpertOutput(logits=self.head(pyramids[0][0]))


def settings(stage: int, folder: Path) -> dict[str, Any]:
    """What differs from the quickstart's config of a stage."""
    warp = dict(type="RandomWarp", size=(SIZE, SIZE), scale=(0.75, 1.25), rotate=15, flip=0.5)
    pipeline = [dict(type="LoadCODPair"), warp, dict(type="PackCODInputs")]
    # In the main process, in workers that outlive an epoch, in workers that do not.
    workers = {1: dict(num_workers=0, persistent_workers=False), 2: dict(num_workers=2)}.get(
        stage, dict(num_workers=2, persistent_workers=False)
    )
    few = dict(batch_size=4, num_workers=0, persistent_workers=False)
    experts = {name: dict(type="ToyExpert", dropout=0.1 * i) for i, name in enumerate("ab")}
    changes = dict(
        checkpoint_dir=str(folder / "weights"),
        model=dict(
            backbone=dict(_delete_=True, type="ToyBackbone"),
            experts=dict(_delete_=True, **experts),
        ),
        train_cfg=dict(max_epochs=4, val_interval={3: 2}.get(stage, 1)),
        train_dataloader=dict(
            batch_size=4,
            **workers,
            dataset=dict(length=12, image_size=SIZE, pipeline=pipeline),
        ),
        val_dataloader=dict(few, dataset=dict(length=6, image_size=SIZE)),
        optim_wrapper=dict(optimizer=dict(lr=3e-2)),
        default_hooks=dict(logger=dict(interval=1)),
        assembly=dict(max_drop=None),
    )
    if stage != 2:
        changes["model"]["frozen"] = ()  # a toy has no body
    if stage == 1:
        ema = dict(type="EMAHook", momentum=0.1, update_buffers=True)
        stopping = dict(type="EarlyStoppingHook", monitor="IoU", rule="greater", patience=3)
        changes["init_from"] = None  # toys begin anew
        changes["train_cfg"].update(max_epochs=6)
        changes["custom_hooks"] = [ema, stopping]
    else:
        changes["model"].update(router=dict(width=8), top_k=1)
    if stage == 2:
        changes["default_hooks"]["frozen_cache"] = dict(views=2)
    return changes


def write_configs(folder: Path) -> list[str]:
    """The configs of the three stages."""
    paths = []
    for stage in (1, 2, 3):
        lines = [f"_base_ = [{str(ROOT / f'configs/quickstart/stage{stage}.py')!r}]"]
        lines += [f"{key} = {value!r}" for key, value in settings(stage, folder).items()]
        path = folder / f"stage{stage}.py"
        path.write_text("\n".join(lines) + "\n")
        paths.append(str(path))
    return paths


def run_here(command: list[str]) -> None:
    """``tools/train.py`` in this process."""
    work_dir = command[command.index("--work-dir") + 1]
    cfg = prepare(load_config(command[2]), work_dir=work_dir)
    cfg.resume = "--resume" in command
    train(cfg)


def die_in(seconds: float) -> None:
    """Have this process killed after a while, whatever it does then."""
    me = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == me:
            os.kill(me, signal.SIGKILL)
        os._exit(0)


def watch_files(folder: Path, seen: Callable[[str], None]) -> None:
    """Call ``seen`` with a name before each change to a file below a folder, but for logs."""
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def audited(event: str, arguments: tuple) -> None:
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & flags):
            return
        if event not in ("open", "os.rename", "os.remove"):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(path, (str, Path)) and Path(path).is_relative_to(folder):
            place = Path(path).relative_to(folder)
            logged = place.suffix in (".log", ".json") and place.name != "finished.json"
            if not logged and len(place.parts) < 4:
                seen(f"{event} {place}")

    sys.addaudithook(audited)


def attempt(
    configs: list[str], folder: Path, *, at: int | None = None, after: float | None = None
) -> tuple[int, list[str]]:
    """Run stages in a forked process, which is killed if so asked.

    Args:
        configs: Their configs.
        folder: Where everything lies.
        at: Number of the change to a file at which it is killed, so many seconds ``after``.
        after: Alone: seconds until it is killed.

    Returns:
        How it ended (0, or minus the signal), and the changes to files that it came to.
    """
    sys.stdout.flush()
    journal = folder.parent / "journal"
    journal.write_text("")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            told = os.open(journal, os.O_WRONLY | os.O_APPEND)
            count = 0

            def seen(name: str) -> None:
                nonlocal count
                os.write(told, f"{name}\n".encode())
                if count == at:
                    if after:
                        die_in(after)
                    else:
                        os.kill(os.getpid(), signal.SIGKILL)
                count += 1

            watch_files(folder, seen)
            if at is None and after is not None:
                die_in(after)
            vars(stages).update(
                run_command=run_here,
                _tested=lambda *_: None,
                write_results=lambda *_: {},
                check_data=lambda stages: [{} for _ in stages],
            )
            stages.run_stages(configs, work_dir=str(folder / "work"))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), journal.read_text().splitlines()


def left(folder: Path, stage: int) -> dict[str, Any]:
    """What a stage leaves, to be compared."""
    name = ("experts_joint", "router", "ensemble")[stage - 1]
    work, best = folder / "work" / f"stage{stage}", folder / "weights" / f"{name}_best.pth"
    finished = json.loads((work / "finished.json").read_text())
    last = max(work.glob("epoch_*.pth"), key=lambda path: int(path.stem[6:]))
    meta = read_meta(best)
    kept = ("best", "best_epoch", "epochs", "iterations", "routing")
    return dict(
        best=read_weights(best),
        last=dict(read_weights(last), name=last.name),
        finished={key: finished[key] for key in kept},
        meta=dict(epoch=meta["epoch"], score=meta["score"]),
    )


def differences(reference: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is not the same to the last bit, in words."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Mapping):
            return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other

    return [key for key in reference if not same(reference[key], found[key])]


def restore(kept: Path, folder: Path) -> None:
    """Put a folder back, times of its files included."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)


def run(
    random_kills: int, seed: int, every: int = 1, chosen: Sequence[int] = (1, 2, 3)
) -> dict[str, Any]:
    """All trials.

    Args:
        random_kills: Kills at random moments of each stage, besides the named ones.
        seed: Chooses these, and delays.
        every: Take each so-manieth of the named moments.
        chosen: Stages to kill; the others run uninterrupted.

    Returns:
        Kills tried by stage and kind, and every run that ended otherwise, with its reason.
    """
    chance = random.Random(seed)
    kills: Counter = Counter()
    wrong: list[dict[str, Any]] = []
    moments: set[str] = set()
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        folder, kept = Path(place, "run"), Path(place, "kept")
        folder.mkdir()
        configs = write_configs(folder)
        for stage in (1, 2, 3):
            chain = configs[:stage]
            restore(folder, kept)
            began = time.time()
            code, events = attempt(chain, folder)
            seconds = time.time() - began
            if code:
                raise RuntimeError(Path(place, "log").read_text()[-4000:])
            reference = left(folder, stage)
            done = Path(place, f"done{stage}")
            restore(folder, done)
            named = [dict(at=i, name=name) for i, name in enumerate(events)]
            # A little later, too: in the midst of what begins there.
            later = [dict(moment, after=chance.uniform(0, 0.004)) for moment in named]
            plan = (named + later)[chance.randrange(every) :: every]
            plan += [dict(after=chance.uniform(0, seconds)) for _ in range(random_kills)]
            for trial in plan if stage in chosen else ():
                restore(kept, folder)
                name = trial.pop("name", "random")
                moments.add(name)
                code, _ = attempt(chain, folder, **trial)
                tries = 0
                while code == -signal.SIGKILL and tries < 3:
                    kills[f"stage {stage}, {'random' if name == 'random' else 'named'}"] += 1
                    # Now and then what goes on is killed as well.
                    again = chance.uniform(0, seconds) if chance.random() < 0.1 else None
                    code, _ = attempt(chain, folder, after=again)
                    tries += again is not None
                if code:
                    time.sleep(11 * (code > 0))  # a lock of which half was written holds so long
                    code, _ = attempt(chain, folder)
                found = ["exit code"] if code else differences(reference, left(folder, stage))
                if found:
                    log = Path(place, "log").read_text()[-1500:] if code else ""
                    wrong.append(dict(trial, stage=stage, moment=name, differs=found, log=log))
                told = ", ".join(found) or "the same"
                print(f"stage {stage}: {name} {trial}: {told}", flush=True)
            restore(done, folder)
    return dict(
        kills=dict(kills),
        total=sum(kills.values()),
        moments=sorted(moments),
        wrong=wrong,
        seconds=round(time.time() - started),
    )


def main() -> None:
    """Print what was tried and what ended otherwise; exit code 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.kills")
    parser.add_argument("--random", type=int, default=25, help="random kills a stage")
    parser.add_argument("--every", type=int, default=1, help="take every Nth named moment")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # mmengine lays out a config five times a training, which takes as long as all else in a toy.
    yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)
    result = run(args.random, args.seed, args.every, args.stages)
    for where, count in result["kills"].items():
        print(f"{where}: {count} kills")
    told = "{total} kills in {seconds} s, {count} ended otherwise"
    print(told.format(**result, count=len(result["wrong"])))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(bool(result["wrong"]))


if __name__ == "__main__":
    main()

"""Unreadable files in a real training: reported once, replaced, and too many end it."""

import os
import sys
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp
from miniature import ONE_EXPERT, ROOT, call, log_of, write_config
from torch import nn
from torch.utils.data import DataLoader

from codmoe.datasets import CODDataset, TolerantDataset
from codmoe.engine.hooks.training import UnreadableFilesHook

sys.path.insert(0, str(ROOT / "tests" / "datasets"))
from folders import add
from test_ddp import free_port

LOAD = [dict(type="LoadCODPair"), dict(type="Resize", scale=(64, 64), keep_ratio=False)]


def config(tmp_path, bad, *changes, bad_val=()):
    """A training on 40 images of which some are truncated, with two workers."""
    stems = [f"{i:02d}" for i in range(40)]
    add(tmp_path / "train", "images", "masks", stems, size=(32, 32))
    add(tmp_path / "val", "images", "masks", stems[:4], size=(32, 32))
    for part, numbers in (("train", bad), ("val", bad_val)):
        for i in numbers:
            path = tmp_path / part / "images" / f"{i:02d}.jpg"
            path.write_bytes(path.read_bytes()[:100])

    def dataset(part, **pack):
        pipeline = [*LOAD, dict(type="PackCODInputs", **pack)]
        root = str(tmp_path / part)
        return dict(type="CODDataset", data_root=root, check_files=False, pipeline=pipeline)

    path = write_config(tmp_path, 1, ONE_EXPERT, *changes)
    lines = [
        "train_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True, "
        f"dataset=dict(_delete_=True, **{dataset('train')!r}))",
        "val_dataloader = dict(batch_size=4, num_workers=1, persistent_workers=True, "
        f"dataset=dict(_delete_=True, **{dataset('val', keep_original=True)!r}))",
    ]
    child = path.with_name(f"bad_{path.name}")
    child.write_text("\n".join([f"_base_ = [{str(path)!r}]", *lines]) + "\n")
    return child


def test_each_is_reported_once_and_training_goes_on(tmp_path, monkeypatch):
    work = tmp_path / "work"
    two_epochs = dict(train_cfg=dict(max_epochs=2), max_unreadable=0.05)
    path = config(tmp_path, [3, 30], two_epochs)
    assert call(monkeypatch, "train", path, "--work-dir", work) is None
    log = log_of(work)
    for name in ("03.jpg", "30.jpg"):
        assert log.count(f"images/{name} is unreadable") == 1
    assert log.count("replaced by another sample: ") == 2
    assert (work / "finished.json").is_file()


def test_too_many_end_it_with_the_list(tmp_path, monkeypatch):
    work = tmp_path / "work"
    path = config(tmp_path, [3, 30, 31], dict(max_unreadable=0.05))
    code = call(monkeypatch, "train", path, "--work-dir", work)
    assert code.startswith(
        "error: 3 of 40 training samples are unreadable, and max_unreadable=0.05"
    )
    assert all(f"images/{name}.jpg" in code for name in ("03", "30", "31")) and "\n" not in code
    assert not (work / "finished.json").exists()


def test_in_validation_it_is_an_error(tmp_path, monkeypatch):
    path = config(tmp_path, [], dict(max_unreadable=0.9), bad_val=[2])
    code = call(monkeypatch, "train", path, "--work-dir", tmp_path / "work")
    assert code.startswith(f"error: {tmp_path}/val/images/02.jpg is unreadable"), code
    assert "\n" not in code


class Runner:
    """What the hook asks of a runner."""

    def __init__(self, dataset):
        self.train_dataloader = DataLoader(dataset)
        self.model, self.iter, self.lines = nn.Linear(1, 1), 49, []
        self.logger = self
        self.warning = self.lines.append


def meet_one_bad_file(rank, port, root):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    source = CODDataset(root, check_files=False, pipeline=LOAD)
    runner = Runner(TolerantDataset(source, max_share=0.05))  # one of 20
    hook = UnreadableFilesHook(interval=50)
    runner.train_dataloader.dataset[rank]
    runner.iter = 3
    hook.after_train_iter(runner, 3)  # not yet
    said, error = list(runner.lines), ""
    try:
        runner.iter = 49
        hook.after_train_iter(runner, 49)
    except ValueError as fault:
        error = str(fault)
    Path(root, f"{rank}.txt").write_text("\n".join([str(len(said)), *runner.lines, error]))
    dist.destroy_process_group()


def test_two_processes_count_together(tmp_path):
    """Each meets one bad file, which would be allowed; both stop at the same step."""
    add(tmp_path, "images", "masks", [f"{i:02d}" for i in range(20)])
    for name in ("00.jpg", "01.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    arguments = (free_port(), str(tmp_path))
    mp.start_processes(meet_one_bad_file, arguments, nprocs=2, start_method="fork")
    for rank in (0, 1):
        early, first, second, error = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert early == "0"
        assert first.startswith(f"replaced by another sample: {tmp_path}/images/00.jpg")
        assert second.startswith(f"replaced by another sample: {tmp_path}/images/01.jpg")
        assert error.startswith("2 of 20 training samples are unreadable")


def test_a_config_that_a_run_left_is_wrapped_once(tmp_path, monkeypatch):
    path = config(tmp_path, [3], dict(max_unreadable=0.05))
    work = tmp_path / "work"
    assert call(monkeypatch, "train", path, "--work-dir", work) is None
    left = work / path.name
    assert "TolerantDataset" in left.read_text()
    again = tmp_path / "again"
    assert call(monkeypatch, "train", left, "--work-dir", again) is None
    assert log_of(again).count("images/03.jpg is unreadable") == 1

"""The launcher of several processes ends as they do, without a word of its own."""

import runpy

import pytest
import torch
from miniature import ONE_EXPERT, ROOT, bash, signal_at, write_config


def test_a_mistake_is_one_sentence(tmp_path):
    done = bash("dist_train.sh", "ensemble/stage33", "2", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines and all(
        line.startswith("error: ") and "did you mean 'ensemble/stage3'" in line for line in lines
    )


def test_a_signal_to_one_process_ends_all(tmp_path):
    # At the end of an epoch, of two: nothing but the epoch's own checkpoint is written.
    config = write_config(tmp_path, 1, ONE_EXPERT, signal_at(0, rank=1), epochs=2)
    done = bash("dist_train.sh", config, "2", "--work-dir", tmp_path / "my work", cwd=tmp_path)
    assert done.returncode == 143 and "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith(f"interrupted by SIGTERM: {tmp_path}/my work/epoch_1.pth holds every")
    assert "go on with: bash " in told and told.endswith(r"/my\ work --resume")


def test_too_few_gpus_are_told_once_before_anything_starts(monkeypatch, capsys):
    """mmengine's logger, which looks its process's GPU up, ended in an IndexError before."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["dist_run.py", "--standalone", "--nproc_per_node", "2", "tools/predict.py"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("torch.distributed.run.main", lambda: pytest.fail("started"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools/dist_run.py"), run_name="__main__")
    assert ended.value.code == 2
    told = "error: --gpus=2, but this machine has 1 GPU(s); use --gpus=1\n"
    assert capsys.readouterr().err == told

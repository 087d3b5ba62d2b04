"""Jobs of a study begin when their files are there, and are told to end in time."""

import subprocess
import sys
import time

import pytest

from projects.jobs import Job, run_jobs, seconds_of


def writes(folder, name, *needs, wait=0.0):
    text = f"import time, pathlib; time.sleep({wait}); pathlib.Path({str(folder / name)!r}).touch()"
    return Job(name, ["-c", text], folder / name, [folder / need for need in needs])


def test_a_job_waits_for_its_files_and_what_is_there_is_left_out(tmp_path, capfd):
    (tmp_path / "there").touch()
    jobs = [writes(tmp_path, "last", "first", "there"), writes(tmp_path, "first")]
    jobs += [writes(tmp_path, "there"), writes(tmp_path, "never", "x")]
    jobs += [Job("fails", ["-c", "1 / 0"], tmp_path / "fails")]
    assert run_jobs(jobs, tmp_path / "logs") == ["never", "fails"]
    told = capfd.readouterr().out
    assert told.index("first on 0: 0") < told.index("last on 0: 0")
    assert "there on" not in told and "left: never, fails; logs: " in told
    assert seconds_of(tmp_path / "logs", "first") > 0


def test_the_user_chooses_which_gpus_the_jobs_see(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    text = "import os, pathlib; pathlib.Path({!r}).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    jobs = [Job(n, ["-c", text.format(str(tmp_path / n))], tmp_path / n) for n in ("a", "b")]
    run_jobs(jobs, tmp_path, gpus=2, per_gpu=1)
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["3", "5"]


def test_at_the_limit_all_end(tmp_path):
    began = time.time()
    assert run_jobs([writes(tmp_path, "long", wait=60)], tmp_path, limit=1.0) == ["long"]
    assert time.time() - began < 30 and not (tmp_path / "long").exists()
    assert seconds_of(tmp_path, "long") == pytest.approx(1, abs=5)  # counts when it is run again


def test_where_the_study_is_ended_its_jobs_end(tmp_path):
    job = f"""
import pathlib, time
from codmoe.interruption import interruption
with interruption.handled():
    pathlib.Path({str(tmp_path / "began")!r}).touch()
    time.sleep(60)
"""
    study = f"""
from pathlib import Path
from projects.jobs import Job, run_jobs
run_jobs([Job("job", ["-c", {job!r}], Path("absent"))], Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", study])
    wait_until((tmp_path / "began").exists)
    process.terminate()
    process.wait(10)
    wait_until(lambda: "interrupted by SIGTERM" in (tmp_path / "job.log").read_text())


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)

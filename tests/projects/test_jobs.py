"""Jobs of a study begin when their files are there, and are told to end in time."""

import time

import pytest

from projects.jobs import Job, run_jobs, seconds_of


def writes(folder, name, *needs, wait=0.0):
    text = f"import time, pathlib; time.sleep({wait}); pathlib.Path({str(folder / name)!r}).touch()"
    return Job(name, ["-c", text], folder / name, [folder / need for need in needs])


def test_a_job_waits_for_its_files_and_what_is_there_is_left_out(tmp_path, capfd):
    (tmp_path / "there").touch()
    jobs = [writes(tmp_path, "last", "first", "there"), writes(tmp_path, "first")]
    run_jobs([*jobs, writes(tmp_path, "there"), writes(tmp_path, "never", "x")], tmp_path / "logs")
    told = capfd.readouterr().out
    assert told.index("first on 0: 0") < told.index("last on 0: 0")
    assert "there on" not in told and "left: never; logs: " in told
    assert seconds_of(tmp_path / "logs", "first") > 0


def test_at_the_limit_all_end(tmp_path):
    began = time.time()
    run_jobs([writes(tmp_path, "long", wait=60)], tmp_path, limit=1.0)
    assert time.time() - began < 30 and not (tmp_path / "long").exists()
    assert seconds_of(tmp_path, "long") == pytest.approx(1, abs=5)  # counts when it is run again

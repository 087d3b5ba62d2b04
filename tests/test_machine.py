import os

import pytest

from codmoe import machine
from codmoe.machine import available_cores, available_memory, check_device


def test_cores_are_those_of_this_process():
    assert 1 <= available_cores() <= os.cpu_count()
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_memory_is_what_the_container_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUPS", ())
    free = available_memory()
    assert free is None or free > 2**20
    files = [tmp_path / name for name in ("most", "now", "stat")]
    for path, text in zip(
        files, ("1000000\n", "900000\n", "anon 5\nfile_read 200000\n"), strict=True
    ):
        path.write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", ((*files, "file_read"),))
    assert available_memory() == 300_000
    files[0].write_text("max\n")
    assert available_memory() == pytest.approx(free, rel=0.5) if free else free is None


def test_a_device_that_is_not_there_is_named():
    check_device("cpu")
    with pytest.raises(ValueError, match=r"device .abacus. is not to be had here .*; use .cpu."):
        check_device("abacus")

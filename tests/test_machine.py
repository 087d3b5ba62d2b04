import os

import pytest

from codmoe.machine import available_cores, check_device


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


def test_a_device_that_is_not_there_is_named():
    check_device("cpu")
    with pytest.raises(ValueError, match=r"device .abacus. is not to be had here .*; use .cpu."):
        check_device("abacus")

"""The one timer of calls."""

import pytest
import torch

from codmoe.evaluation.timing import side_by_side, working_memory

CPU = torch.device("cpu")


def test_working_memory_is_the_peak_of_a_call(capfd):
    there = torch.zeros(2**20)

    def call():
        for _ in range(2):
            first = there + 1  # 4 MiB
            second = first + 1  # 8 at once
            del first
        return second

    # Of the second round, the first one's result is still there.
    assert working_memory(call, CPU) == pytest.approx(12, abs=0.1)
    assert capfd.readouterr().err == ""


def test_calls_are_timed_in_turns_and_all_equally_often():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = side_by_side(calls, CPU, repeats=20)
    rounds = [order[i : i + 3] for i in range(0, 60, 3)]
    assert len(order) == 60 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    samples["a"].seconds = [float(i) for i in range(1, 11)]
    samples["a"].burst = 2.0
    figures = samples["a"].figures(batch=4)
    spread = dict(p10_ms=1000.0, p90_ms=9000.0)
    assert figures == dict(n=10, median_ms=5500.0, images_per_second=2.0, **spread)

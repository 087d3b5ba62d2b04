import json

import pytest
import torch
from miniature import ONE_EXPERT, TWO_EXPERTS, write_config

from benchmarks import step_timing
from benchmarks.step_profile import covered, read_trace
from benchmarks.step_timing import measure


def event(category, name, begin, length, thread=1, **args):
    said = dict(ph="X", cat=category, name=name, ts=begin, dur=length, tid=thread)
    return said | dict(args={key.replace("_", " "): value for key, value in args.items()})


TRACE = [
    event("user_annotation", "codmoe forward rest", 0, 100),
    event("user_annotation", "codmoe forward experts.sinet", 10, 40),
    event("cpu_op", "aten::conv2d", 11, 20, Sequence_number=0),
    event("cpu_op", "aten::convolution", 12, 15, Sequence_number=0),
    event("cuda_runtime", "cudaLaunchKernel", 13, 2, correlation=1),
    event("cpu_op", "aten::sum", 60, 10, Sequence_number=1),
    event("cuda_runtime", "cudaLaunchKernel", 61, 2, correlation=2),
    event("user_annotation", "codmoe backward rest", 100, 100),
    # torch runs the backward pass in a thread of its own, which has a number before the first one.
    event("cpu_op", "autograd::engine::evaluate_function: SumBackward0", 110, 10, 0,
          Sequence_number=1),
    event("cuda_driver", "cuLaunchKernel", 112, 1, 0, correlation=3),
    event("cpu_op", "autograd::engine::evaluate_function: ConvolutionBackward0", 120, 20, 0,
          Sequence_number=0),
    event("cuda_runtime", "cudaGraphLaunch", 125, 1, 0, correlation=4),
    event("cpu_op", "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 150, 9,
          0),
    event("cuda_runtime", "cudaLaunchKernel", 152, 1, 0, correlation=5),
    event("user_annotation", "codmoe optimiser", 200, 20),
    event("cuda_runtime", "cudaMemsetAsync", 202, 1, correlation=6),
    event("cuda_runtime", "cudaLaunchKernel", 230, 1, correlation=7),
    event("kernel", "conv", 20, 4000, 7, correlation=1),
    event("kernel", "sum", 3020, 2000, 7, correlation=2),
    event("kernel", "sum", 6000, 1000, 7, correlation=3),
    event("kernel", "dgrad", 7000, 3000, 7, correlation=4),
    event("kernel", "wgrad", 8000, 3000, 8, correlation=4),
    event("kernel", "add", 11000, 500, 7, correlation=5),
    event("gpu_memset", "Memset", 12000, 500, 7, correlation=6),
    event("kernel", "copy", 13000, 500, 7, correlation=7),
    event("gpu_user_annotation", "codmoe forward rest", 20, 9000, 7),
    dict(ph="M", name="process_name"),
]  # fmt: skip


def test_kernels_belong_to_the_part_that_launched_them_or_made_the_node():
    found = read_trace(TRACE, steps=2)
    assert found["kernel_ms"] == pytest.approx(14.5 / 2)
    # 20 to 5020, 6000 to 11500, and two of half a millisecond.
    assert found["busy_ms"] == pytest.approx((5.0 + 5.5 + 1.0) / 2)
    assert (found["kernels"], found["launches"]) == (4.0, 3.5)
    assert {name: part["ms"] * 2 for name, part in found["parts"].items()} == pytest.approx({
        "backward experts.sinet": 6.0,
        "forward experts.sinet": 4.0,
        "forward rest": 2.0,
        "backward rest": 1.0,
        "backward adding up gradients": 0.5,
        "optimiser": 0.5,
        "between": 0.5,
    })  # fmt: skip
    assert next(iter(found["parts"])) == "backward experts.sinet"
    assert found["top"][0] == dict(name="conv", ms=2.0, count=0.5)


def test_length_of_a_union():
    assert covered(iter([(5, 6), (0, 2), (1, 3), (1, 2)])) == 4


def test_what_was_timed_is_kept_when_a_profiler_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no profiler")

    monkeypatch.setattr(step_timing, "StepProfile", fail)
    config = write_config(tmp_path, 1, dict(init_from=None), ONE_EXPERT)
    spec = dict(config=str(config), options={}, data="synthetic", steps=2, warmup=1, size=64)
    out = tmp_path / "result.json"
    spec |= dict(profile=True, work_dir=str(tmp_path / "work"), out=str(out))
    with pytest.raises(RuntimeError, match="no profiler"):
        measure(spec, "none")
    kept = json.loads(out.read_text())
    assert len(kept["seconds"][0]) == 2 and kept["profile"] is None and kept["first_gradients"]


def test_steps_of_a_training_are_profiled(tmp_path):
    config = write_config(tmp_path, 3, dict(init_from=None), TWO_EXPERTS)
    spec = dict(config=str(config), options={}, data="synthetic", steps=1, warmup=1, size=64)
    spec |= dict(profile=True, work_dir=str(tmp_path / "work"))
    torch.set_num_threads(1)
    figures = measure(spec, "none")
    found, experts = figures["profile"], figures["expert_names"]
    assert found["busy_ms"] > 0 and len(found["top"]) == 10
    parts = found["parts"]
    for name in ("backbone", "router", "combiner", *(f"experts.{name}" for name in experts)):
        assert parts[f"forward {name}"]["ms"] > 0 and parts[f"backward {name}"]["ms"] > 0
    assert parts["optimiser"]["kernels"] > 10
    named = sum(p["ms"] for name, p in parts.items() if name not in ("between", "backward rest"))
    assert named > 0.8 * found["kernel_ms"]

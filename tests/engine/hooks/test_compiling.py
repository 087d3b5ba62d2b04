"""Parts are compiled before the first step, and again when others learn."""

import json
from types import SimpleNamespace

import pytest
import torch
from miniature import TWO_EXPERTS, assert_same, log_of, prepared, weights, write_config

from codmoe.compiled import train_compile
from codmoe.compiled.speed import compiled_parts, mapped
from codmoe.engine.hooks import compiling as hook_file
from codmoe.engine.launch import train

NO_VALIDATION = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)


@pytest.fixture
def compiling(monkeypatch, tmp_path):
    """Pieces that processes were asked for; what they compiled runs as it is."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    labels = []

    def at_once(pieces, most):
        for i, piece in enumerate(pieces):
            labels.append(piece.label)
            yield i, dict(seconds=0.1, bypassed=0)

    monkeypatch.setattr(train_compile, "_side_by_side", at_once)
    return labels


@pytest.mark.parametrize("execution", ["sequential", "checkpoint"])
def test_looking_at_a_step_does_not_change_training(tmp_path, compiling, execution):
    changes = dict(model=dict(expert_execution=execution), default_hooks=dict(warmup=None))
    for name, options in (("plain", {}), ("compiled", dict(backbone=True, experts=True))):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, 1, TWO_EXPERTS, NO_VALIDATION, changes)
        train(prepared(config, folder / "work", compile=options))
    size = "4 × 3 × 64 × 64"
    assert sorted(compiling) == [
        f"{x} {size}" for x in ("backbone", "experts.pranet", "experts.sinet")
    ]
    plain, compiled = (
        weights(tmp_path / name / "weights" / "experts_joint_best.pth")
        for name in ("plain", "compiled")
    )
    assert_same(plain, compiled, rtol=0, atol=0)
    assert "3 pieces to train with: 3 compiled now" in log_of(tmp_path / "compiled" / "work")


def test_what_learns_later_is_compiled_then(tmp_path, compiling):
    held = dict(default_hooks=dict(warmup=dict(type="BackboneWarmupHook", epochs=1)))
    config = write_config(tmp_path, 1, TWO_EXPERTS, NO_VALIDATION, held, epochs=3)
    runner = train(prepared(config, tmp_path / "work", compile=dict(backbone=True, experts=True)))
    # The first epoch has a body that is held; the third begins like the second.
    counts = [sum(label.startswith(part) for label in compiling) for part in ("back", "experts")]
    assert counts == [2, 4]
    assert all(part.known for part in compiled_parts(runner.model).values())


@pytest.mark.parametrize(("each_step", "warnings"), [(0, 0), (0.2, 0), (1, 1)])
def test_graphs_that_do_not_last_are_told_once(monkeypatch, each_step, warnings):
    said, steps = [], 0
    monkeypatch.setattr(hook_file, "print_log", lambda text, **_: said.append(text))
    # In the first steps each graph is captured, which is no fault.
    monkeypatch.setattr(hook_file, "captured_anew", lambda: min(steps, 15) + int(each_step * steps))
    hook = hook_file.CompileHook()
    for steps in range(1, 101):
        hook.after_train_iter(SimpleNamespace(iter=steps - 1), steps - 1)
    assert len(said) == warnings
    assert all("captured again in 20 of 20 steps" in line for line in said)


def test_nothing_is_looked_at_where_nothing_is_compiled(tmp_path, compiling):
    train(prepared(write_config(tmp_path, 1, TWO_EXPERTS, NO_VALIDATION), tmp_path / "work"))
    assert not compiling and "pieces" not in log_of(tmp_path / "work")


@pytest.mark.parametrize("stage", [1, 3])
def test_nothing_is_read_after_the_next_step_has_begun(tmp_path, compiling, monkeypatch, stage):
    """By then results of captured code are overwritten, on this stand-in with NaN: what is logged
    later, and what the router remembers, has to be memory of its own.
    """
    written, real = [], train_compile.InTraining.__call__

    def captured(part, *args, **kwargs):
        result = real(part, *args, **kwargs)
        if part.module.training and part.watch is None:
            given = []
            mapped((args, kwargs, dict(part.module.named_buffers())), given.append)
            own = {x.untyped_storage().data_ptr() for x in (*given, *part.module.parameters())}

            def note(x):
                if x.untyped_storage().data_ptr() not in own and x.is_floating_point():
                    written.append(x.detach())
                return x

            mapped(result, note)
        return result

    def begins():
        for tensor in written:
            tensor.fill_(torch.nan)
        steps.append(len(written))
        written.clear()

    steps = []
    monkeypatch.setattr(train_compile.InTraining, "__call__", captured)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begins)
    scalars = []
    for name, options in (("plain", False), ("compiled", True)):
        folder = tmp_path / name
        folder.mkdir()
        # Read every third step, and at the end of an epoch.
        late = dict(default_hooks=dict(logger=dict(interval=3)), init_from=None)
        late["model"] = dict(expert_execution="together", checkpoint_backbone=None)
        late["train_dataloader"] = dict(batch_size=2)
        config = write_config(folder, stage, TWO_EXPERTS, NO_VALIDATION, late, epochs=2)
        train(prepared(config, folder / "work", compile=options))
        (file,) = (folder / "work").glob("*/vis_data/scalars.json")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        times = {"time", "data_time", "memory"}
        scalars.append([{k: v for k, v in row.items() if k not in times} for row in rows])
    assert len(steps) == 8 and all(steps[1:]) and len(scalars[0]) >= 2
    assert scalars[0] == scalars[1]

"""Parts are compiled before the first step, and again when others learn."""

import pytest
import torch
from miniature import TWO_EXPERTS, assert_same, log_of, prepared, weights, write_config

from codmoe.compiled import train_compile
from codmoe.compiled.speed import compiled_parts
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


def test_nothing_is_looked_at_where_nothing_is_compiled(tmp_path, compiling):
    train(prepared(write_config(tmp_path, 1, TWO_EXPERTS, NO_VALIDATION), tmp_path / "work"))
    assert not compiling and "pieces" not in log_of(tmp_path / "work")

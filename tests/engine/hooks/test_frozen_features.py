import json
import re

import pytest
import torch
from miniature import (
    STOP,
    TWO_EXPERTS,
    build,
    log_of,
    merged,
    on_two_ranks,
    prepared,
    weights,
    write_config,
)

from codmoe.datasets.views import FixedViews
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.launch import train
from codmoe.models.backbones.timm_pyramid import TimmPyramid

AUGMENTED = dict(
    train_dataloader=dict(
        dataset=dict(
            pipeline=[
                dict(type="LoadCODPair"),
                dict(type="RandomWarp", size=(64, 64), scale=(0.75, 1.25), rotate=15, flip=0.5),
                dict(type="PackCODInputs"),
            ]
        )
    )
)


def stage_2(folder, *changes, epochs, **cache):
    # Without the check of what the stage starts from, which runs the backbone too.
    hooks = dict(assembly=None, default_hooks=dict(frozen_cache=dict(dtype="float32", **cache)))
    config = write_config(folder, 2, TWO_EXPERTS, AUGMENTED, hooks, *changes, epochs=epochs)
    torch.manual_seed(7)
    model = build(config)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    save_weights(folder / "weights" / "experts_joint_best.pth", model, {}, "stage 1")
    return config


@pytest.fixture(autouse=True)
def plenty(monkeypatch):
    monkeypatch.setattr("codmoe.engine.hooks.frozen_features.available_memory", lambda: 64 * 10**9)


@pytest.fixture
def runs(monkeypatch):
    """Images that the backbone saw, by training epoch or validation."""
    seen = []
    real = TimmPyramid.forward

    def forward(self, images):
        seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(TimmPyramid, "forward", forward)
    return seen


def test_after_all_views_the_frozen_parts_do_not_run(tmp_path, runs):
    config = stage_2(tmp_path, epochs=4, views=2)
    train(prepared(config, tmp_path / "work"))
    # 8 images in two views and 4 of validation, in place of 4 · (8 + 4).
    assert sum(runs) == 2 * 8 + 4
    log = log_of(tmp_path / "work")
    assert "frozen cache: 8 of 20 image views" in log
    assert "frozen cache: 20 of 20 image views" in log and "(limit 8 GB)" in log
    assert "backbone and experts ran on 8 of 8 images" in log


def test_views_that_do_not_come_back_are_not_kept(tmp_path, runs):
    config = stage_2(tmp_path, epochs=3, views=2)
    train(prepared(config, tmp_path / "work"))
    # View 0 is shown in the first and third epoch, view 1 in the second alone.
    assert sum(runs) == 2 * 8 + 4
    log = log_of(tmp_path / "work")
    assert "frozen cache: 8 of 20 image views" in log  # after the first epoch
    assert "frozen cache: 12 of 20 image views" in log  # after the second, and a validation


def test_it_ends_where_training_without_it_does(tmp_path, runs, monkeypatch):
    config = stage_2(tmp_path, epochs=3, views=2)
    train(prepared(config, tmp_path / "with"))
    kept = weights(tmp_path / "weights" / "router_best.pth")
    # The same views, but nothing is ever kept.
    monkeypatch.setattr("codmoe.models.frozen_cache.FrozenCache._keep", lambda *args: None)
    runs.clear()
    train(prepared(config, tmp_path / "without"))
    assert sum(runs) == 3 * (8 + 4)
    plain = weights(tmp_path / "weights" / "router_best.pth")
    for key, value in plain.items():
        torch.testing.assert_close(kept[key], value, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_sees_the_views_it_would_have_seen(tmp_path):
    quiet = dict(model=dict(router=dict(noise=0.0)))  # whose state no checkpoint holds
    whole = stage_2(tmp_path, quiet, epochs=3, views=2)
    train(prepared(whole, tmp_path / "whole"))
    stopped = stage_2(tmp_path, quiet, STOP, epochs=3, views=2)
    train(prepared(stopped, tmp_path / "parts"))
    train(prepared(whole, tmp_path / "parts", resume=True))
    one, other = (
        torch.load(tmp_path / name / "epoch_3.pth", weights_only=False)["state_dict"]
        for name in ("whole", "parts")
    )
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-4)


def test_one_view_is_the_image_without_augmentation(tmp_path):
    cfg = prepared(stage_2(tmp_path, epochs=1, views=1), tmp_path / "work")
    runner = train(cfg)
    dataset = runner.train_dataloader.dataset
    while not isinstance(dataset, FixedViews):
        dataset = dataset.dataset
    steps = [type(t).__name__ for t in dataset.dataset.pipeline.transforms]
    assert steps == ["LoadCODPair", "PackCODInputs"]
    assert "gt_mask" not in dataset[0]["data_samples"]


def test_what_learns_is_not_kept(tmp_path):
    for model, word in (
        (dict(frozen=("backbone",)), r"leaves out \['experts'\]"),
        (dict(train_dispatch="sparse", routing_losses=dict(distill=None)), "train_dispatch"),
        (dict(expert_loss_weight=0.3), "expert_loss_weight=0"),
    ):
        config = stage_2(tmp_path, dict(model=merged(TWO_EXPERTS["model"], model)), epochs=1)
        with pytest.raises(ValueError, match=rf"{word}.*frozen_cache=None"):
            train(prepared(config, tmp_path / "work"))


def test_it_leaves_memory_to_others(tmp_path, monkeypatch):
    free = iter([40_000_000, None])
    monkeypatch.setattr("codmoe.engine.hooks.frozen_features.available_memory", lambda: next(free))
    config = stage_2(tmp_path, epochs=2, views=1)
    train(prepared(config, tmp_path / "little"))
    log = log_of(tmp_path / "little")
    assert "limit_gb=8 for each of 1 process(es), but 0.0 GB" in log and "(limit 0.02 GB)" in log
    train(prepared(config, tmp_path / "unknown"))
    assert "(limit 8 GB)" in log_of(tmp_path / "unknown")


def test_it_can_be_switched_off(tmp_path, runs):
    config = stage_2(tmp_path, epochs=2)
    train(prepared(config, tmp_path / "work", **{"default_hooks.frozen_cache": None}))
    assert sum(runs) == 2 * (8 + 4) and "frozen cache" not in log_of(tmp_path / "work")


def test_two_processes_keep_what_comes_to_each(tmp_path):
    each = dict(train_dataloader=dict(batch_size=2), val_dataloader=dict(batch_size=2))
    measured = dict(default_hooks=dict(experts_after=dict(type="ExpertsAfterHook")))
    config = stage_2(tmp_path, each, measured, epochs=3, views=1)
    work_dir = tmp_path / "work"
    on_two_ranks("train", config, "--work-dir", work_dir, cwd=tmp_path)
    # Of the main process: half of the images at first, later those that were the other's.
    ran = re.findall(r"experts ran on (\d+) of (\d+) images", log_of(work_dir))
    assert ran[0] == ("4", "4") and all(int(some) <= int(of) for some, of in ran)
    finished = json.loads((work_dir / "finished.json").read_text())
    assert finished["routing"]["IoU_mixture"] == pytest.approx(finished["best"], abs=1e-6)
    found = json.loads((work_dir / "experts_after.json").read_text())
    assert found["before"]["images"] == found["after"]["images"] == 4
    # Frozen experts are the same before and after, on whichever process each image was.
    for name in ("pranet", "sinet", "oracle"):
        assert found["change"]["IoU"][name] == pytest.approx(0, abs=1e-6)

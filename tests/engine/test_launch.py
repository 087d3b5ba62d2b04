"""Real trainings in miniature, and what is refused before the first step."""

import json
import os
import re
import shutil

import pytest
import torch
from miniature import (
    ONE_EXPERT,
    TWO_EXPERTS,
    Interrupt,
    assert_same,
    build,
    call,
    file_size,
    images,
    log_of,
    prepared,
    weights,
    write_config,
)

from codmoe.datasets.synthetic import SyntheticCamouflage
from codmoe.engine.checkpoints import newest_checkpoint, read_meta, read_weights, save_weights
from codmoe.engine.hooks.training import TrainingProgressHook
from codmoe.engine.launch import run_alone, settle, train
from codmoe.files import replacing
from codmoe.models import ModelLevelMoE


def joint_weights(config, seed=7):
    """Leaves what stage 1 would: weights and running statistics unlike a fresh model's."""
    torch.manual_seed(seed)
    model = build(config)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    path = config.parent / "weights" / "experts_joint_best.pth"
    save_weights(path, model, {}, "stage 1")
    return path


def test_one_training_from_end_to_end(tmp_path):
    config, work_dir = write_config(tmp_path), tmp_path / "work"
    seen = []
    real = TrainingProgressHook.before_train_iter

    def before(self, runner, *args, **kwargs):
        real(self, runner, *args, **kwargs)
        seen.append(runner.model.run_state.progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgressHook, "before_train_iter", before)
        runner = train(prepared(config, work_dir))
    assert seen == [0, 0.5] and runner.model.run_state.progress == 1

    finished = json.loads((work_dir / "finished.json").read_text())
    assert finished["epochs"] == 1 and finished["iterations"] == 2
    # Chosen on the validation images, for whoever predicts.
    chosen = read_meta(tmp_path / "weights" / "experts_joint_best.pth")["threshold"]
    assert 0 < chosen < 1 and chosen == runner.val_evaluator.metrics[0].threshold
    assert finished["best_epoch"] == 1 and 0 <= finished["best"] <= 1
    assert finished["precision"] == "float32" and finished["config"] == str(config)
    assert "precision: float32" in log_of(work_dir)

    path = tmp_path / "weights" / "experts_joint_best.pth"
    content = torch.load(path, weights_only=True)
    meta = content["meta"]
    assert meta["score"] == finished["best"] and meta["stage"] == "experts_joint"
    assert meta["expert_names"] == ["pranet", "sinet", "ujsc", "zoomnet"]
    fresh = build(config)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    assert isinstance(fresh, ModelLevelMoE)
    fresh.load_state_dict(content["state_dict"])  # strictly
    trained = {k for k, v in fresh.state_dict().items() if not torch.equal(v, before[k])}
    for part in ("backbone.", *(f"experts.{name}." for name in meta["expert_names"])):
        assert any(key.startswith(part) for key in trained)
    # mmengine's own checkpoint of the epoch, for --resume, holds the same and reads as well.
    checkpoint = work_dir / "epoch_1.pth"
    assert (work_dir / "last_checkpoint").read_text() == str(checkpoint)
    assert_same(read_weights(checkpoint), content["state_dict"], atol=0, rtol=0)
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]  # no temporary file is left


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, interrupt):
    config = write_config(tmp_path, 1, ONE_EXPERT, epochs=2)
    train(prepared(config, tmp_path / "whole"))
    reference = read_weights(tmp_path / "whole" / "epoch_2.pth")
    whole_best = weights(tmp_path / "weights" / "experts_joint_best.pth")

    work_dir = tmp_path / "parts"
    interrupt(3)  # in the middle of epoch 2
    with pytest.raises(Interrupt):
        train(prepared(config, work_dir))
    assert not (work_dir / "finished.json").exists()
    assert (work_dir / "epoch_1.pth").is_file() and not (work_dir / "epoch_2.pth").exists()
    first = read_weights(work_dir / "epoch_1.pth")
    runner = train(prepared(config, work_dir, resume=True))
    assert re.search(r"resumed epoch: 1, iter: 2", log_of(work_dir))
    assert runner.iter == 4
    resumed = read_weights(work_dir / "epoch_2.pth")
    assert_same(resumed, reference, atol=1e-6, rtol=1e-5)
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    assert_same(best, whole_best, atol=1e-6, rtol=1e-5)
    # It matters: one epoch in place of two would not have done.
    assert any(not torch.allclose(first[k].float(), v.float()) for k, v in reference.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a training that ended: its config, ``work`` and ``weights``."""
    folder = tmp_path_factory.mktemp("finished")
    train(prepared(write_config(folder, 1, ONE_EXPERT), folder / "work"))
    return folder


@pytest.fixture
def earlier(finished, tmp_path):
    """A copy of it, and the config that goes with the copy."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return write_config(tmp_path, 1, ONE_EXPERT)


def test_starting_again_keeps_the_earlier_checkpoints(tmp_path, earlier):
    work_dir = tmp_path / "work"
    before = {p.name: p.read_bytes() for p in work_dir.iterdir() if p.is_file()}
    best = tmp_path / "weights" / "experts_joint_best.pth"
    earlier_best = best.read_bytes()
    train(prepared(earlier, work_dir, **{"randomness.seed": 1}))
    (folder,) = work_dir.glob("earlier-*")
    for name in ("epoch_1.pth", "last_checkpoint", "finished.json"):
        assert (folder / name).read_bytes() == before[name]
    assert (work_dir / "epoch_1.pth").read_bytes() != before["epoch_1.pth"]
    (kept,) = [p for p in best.parent.iterdir() if p != best]
    assert kept.read_bytes() == earlier_best and best.read_bytes() != earlier_best


def test_a_run_that_cannot_start_moves_nothing(tmp_path, earlier):
    wrong = write_config(tmp_path, 1, ONE_EXPERT, dict(model=dict(top_k=5)))
    with pytest.raises(ValueError):
        train(prepared(wrong, tmp_path / "work"))
    assert not list((tmp_path / "work").glob("earlier-*"))
    assert (tmp_path / "work" / "last_checkpoint").is_file()


def test_resuming_nothing_is_refused(tmp_path):
    config = write_config(tmp_path, 2, TWO_EXPERTS)
    joint_weights(config)
    with pytest.raises(FileNotFoundError, match=r"work holds no training.*leave --resume out"):
        train(prepared(config, tmp_path / "work", resume=True))
    assert settle(prepared(config, tmp_path / "work", resume="auto")).resume is None


def test_a_copied_folder_goes_on_from_its_own_checkpoint(tmp_path, earlier, finished, monkeypatch):
    # last_checkpoint holds the path in the folder that was copied.
    (finished / "work" / "epoch_1.pth").rename(finished / "work" / "away.pth")
    try:
        options = ("--work-dir", tmp_path / "work", "--cfg-options", "train_cfg.max_epochs=2")
        assert call(monkeypatch, "train", earlier, *options, "resume=True") is None
    finally:
        (finished / "work" / "away.pth").rename(finished / "work" / "epoch_1.pth")
    again = settle(prepared(earlier, tmp_path / "work", resume="auto"))
    assert again.resume == tmp_path / "work" / "epoch_2.pth" and again.cfg.resume is True
    assert f"loaded {tmp_path / 'work' / 'epoch_1.pth'}" in log_of(tmp_path / "work")
    assert json.loads((tmp_path / "work" / "finished.json").read_text())["epochs"] == 2


def test_two_runs_in_one_folder_are_refused(tmp_path, earlier):
    work, best = tmp_path / "work", tmp_path / "weights" / "experts_joint_best.pth"
    before = {p: p.read_bytes() for p in (best, *work.glob("*.pth"), work / "finished.json")}
    with run_alone(prepared(earlier, work)):
        with pytest.raises(ValueError, match=r"work is in use by .*; wait for it, or give another"):
            train(prepared(earlier, work))
        # Another work dir, but the same best weights.
        with pytest.raises(
            ValueError, match=r"experts_joint_best\.pth is in use by .*checkpoint_d"
        ):
            train(prepared(earlier, tmp_path / "other"))
        assert not (tmp_path / "other").exists()
        other = {"default_hooks.best.name": "expert_sinet"}  # trained beside it, as stage 1 may be
        train(prepared(earlier, tmp_path / "other", **other))
    assert before == {p: p.read_bytes() for p in before}
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_a_full_disk_ends_in_one_sentence(tmp_path, earlier, capfd):
    work, full = tmp_path / "work", r"cannot be written: .*ulimit -f"
    new, old = prepared(earlier, tmp_path / "new"), prepared(earlier, work, resume=True)
    size = (work / "epoch_1.pth").stat().st_size
    with file_size(size - 1), pytest.raises(OSError, match=full) as caught:
        train(new)
    assert caught.value.filename == str(tmp_path / "new" / "epoch_1.pth")
    # Even the log, and the config beside it, are more than there is room for.
    with file_size(100), pytest.raises(OSError, match=full):
        train(old)
    assert "Traceback" not in capfd.readouterr().err
    assert newest_checkpoint(work) == work / "epoch_1.pth"


def test_a_work_dir_that_is_deleted_is_named(tmp_path, interrupt):
    config, work = write_config(tmp_path, 1, ONE_EXPERT, epochs=2), tmp_path / "work"
    interrupt(1, lambda: shutil.rmtree(work))
    with pytest.raises(FileNotFoundError, match="was deleted while its training ran") as caught:
        train(prepared(config, work))
    assert caught.value.filename == str(work)


def test_what_a_killed_run_left_is_swept(tmp_path, earlier, ended):
    with replacing(tmp_path / "weights" / "a.pth") as temporary:
        temporary.write_text("")
        left = temporary.name.replace(f"-{os.getpid()}-", f"-{ended}-")
    for folder in ("work", "weights"):
        (tmp_path / folder / left).write_text("half")
    with run_alone(prepared(earlier, tmp_path / "work")):
        assert not list(tmp_path.rglob(left))


@pytest.fixture
def first_weights(monkeypatch):
    """The model's state before the first step of the next training."""
    state = {}
    real = TrainingProgressHook.before_train_iter

    def before(self, runner, *args, **kwargs):
        real(self, runner, *args, **kwargs)
        for key, value in runner.model.state_dict().items():
            state.setdefault(key, value.clone())

    monkeypatch.setattr(TrainingProgressHook, "before_train_iter", before)
    return state


def test_stage_2_changes_nothing_but_the_router(tmp_path, first_weights):
    config, work_dir = write_config(tmp_path, 2), tmp_path / "work"
    given = weights(joint_weights(config))
    train(prepared(config, work_dir))
    after = weights(tmp_path / "weights" / "router_best.pth")
    assert {key.split(".")[0] for key in after} == {"backbone", "experts", "router"}
    fixed = {key for key in after if not key.startswith("router.")}
    assert fixed == {key for key in given if not key.startswith("router.")}
    for key in fixed:
        assert after[key].numpy().tobytes() == given[key].numpy().tobytes(), key
    assert any(key.endswith("running_var") for key in fixed)
    log = log_of(work_dir)
    assert f"loaded {len(fixed)} tensors from" in log
    assert "is skipped since" not in log  # once for each of a thousand frozen parameters
    trained = [key for key in after if not torch.equal(after[key], first_weights[key])]
    assert trained and set(trained).isdisjoint(fixed)


def test_stage_3_trains_everything(tmp_path, first_weights):
    config = write_config(tmp_path, 3, TWO_EXPERTS)
    torch.manual_seed(7)
    given = build(config)
    save_weights(tmp_path / "weights" / "router_best.pth", given, {}, "stage 2")
    train(prepared(config, tmp_path / "work"))
    assert_same(first_weights, given.state_dict(), atol=0, rtol=0)
    after = weights(tmp_path / "weights" / "ensemble_best.pth")
    for part in ("backbone", "experts.sinet", "experts.pranet", "router"):
        own = [name for name, _ in given.named_parameters() if name.startswith(part)]
        moved = [name for name in own if not torch.equal(after[name], first_weights[name])]
        assert len(moved) > 0.8 * len(own), part


def test_a_missing_handover_is_told_before_anything_is_built(tmp_path, monkeypatch):
    def no_data(*args, **kwargs):
        raise AssertionError("the data set was built")

    files = {2: "experts_joint_best.pth", 3: "router_best.pth"}
    ready = {s: prepared(write_config(tmp_path, s), tmp_path / "work") for s in files}
    monkeypatch.setattr(SyntheticCamouflage, "__init__", no_data)
    for stage, file in files.items():
        with pytest.raises(FileNotFoundError) as caught:
            train(ready[stage])
        assert str(tmp_path / "weights" / file) in str(caught.value)
        assert f"codmoe train configs/quickstart/stage{stage - 1}.py" in str(caught.value)
    assert not (tmp_path / "work").exists()


def test_a_handover_of_other_widths_is_told_before_the_first_step(tmp_path, monkeypatch):
    config = write_config(tmp_path, 2, TWO_EXPERTS)
    wider = write_config(
        tmp_path, 2, TWO_EXPERTS, dict(model=dict(experts=dict(sinet=dict(channels=24))))
    )
    path = joint_weights(wider)
    steps = []
    monkeypatch.setattr(ModelLevelMoE, "loss", lambda *args: steps.append(1))
    with pytest.raises(ValueError) as caught:
        train(prepared(config, tmp_path / "work"))
    for word in (str(path), "keys differ in shape", "experts.sinet.", "quickstart/stage1.py"):
        assert word in str(caught.value)
    assert steps == []


def test_sync_bn_is_refused_where_it_would_hang(tmp_path):
    cfg = prepared(write_config(tmp_path), tmp_path / "work", sync_bn="torch")
    with pytest.raises(ValueError, match=r"sync_bn='torch'.*train_dispatch='dense'"):
        train(cfg)
    cfg.model.train_dispatch = "dense"
    assert settle(cfg).every_expert_runs


def test_the_log_is_short(finished):
    """mmengine logs a hundred lines of environment and one for each parameter."""
    log = log_of(finished / "work")
    assert len(log.splitlines()) < 40
    assert "1 × " in log and "paramwise_options" not in log


def test_a_model_is_built_for_use(tmp_path):
    assert not build(write_config(tmp_path, 1, TWO_EXPERTS)).training


def test_fewer_images_than_a_batch_are_told(tmp_path):
    config = write_config(tmp_path, 1, TWO_EXPERTS, dict(train_dataloader=images(3)))
    with pytest.raises(ValueError, match=r"3 images, less than one batch of 4 .*batch_size"):
        train(prepared(config, tmp_path / "work"))

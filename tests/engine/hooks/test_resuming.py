"""Runs that were cut off: what they owe is made up, and they end as if nothing had happened."""

import json
import re
import signal

import pytest
import torch
from miniature import (
    ONE_EXPERT,
    Interrupt,
    assert_same,
    call,
    log_of,
    on_two_ranks,
    prepared,
    signal_at,
    write_config,
)
from mmengine.hooks import CheckpointHook as Theirs
from mmengine.hooks import EarlyStoppingHook
from torch.multiprocessing import ProcessExitedException

from benchmarks.kills import differences, left, settings
from codmoe.engine.checkpoints import read_meta, read_weights
from codmoe.engine.hooks.resuming import ResumableHook
from codmoe.engine.hooks.training import BestWeightsHook, InterruptionHook
from codmoe.engine.launch import train
from codmoe.trust import read_pickle

BEST = "weights/experts_joint_best.pth"
PLAIN = dict(custom_hooks=[], train_cfg=dict(max_epochs=3))


@pytest.fixture
def once(monkeypatch):
    """``once(owner, method, when)``: raises Interrupt there, one time."""

    def at(owner, method, when=lambda runner: True):
        real = getattr(owner, method)

        def cut(self, runner, *args, **kwargs):
            if when(runner):
                monkeypatch.setattr(owner, method, real)
                raise Interrupt
            return real(self, runner, *args, **kwargs)

        monkeypatch.setattr(owner, method, cut)

    return at


def toy(folder, *changes):
    folder.mkdir(exist_ok=True)
    return write_config(folder, 1, settings(1, folder), *changes)


def whole(folder, *changes):
    train(prepared(toy(folder, *changes), folder / "work/stage1"))
    return left(folder, 1)


def go_on(config, work):
    """The training that is cut off, and its end."""
    with pytest.raises(Interrupt):
        train(prepared(config, work))
    return train(prepared(config, work, resume=True))


def resumed(folder, *changes):
    go_on(toy(folder, *changes), folder / "work/stage1")
    return left(folder, 1)


def end(folder, iteration):
    meta, last = read_meta(folder / BEST), folder / f"work/stage1/iter_{iteration}.pth"
    weights = dict(best=read_weights(folder / BEST), last=read_weights(last))
    return dict(weights, score=meta["score"])


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_validation_that_was_cut_off_is_made_up(tmp_path, once, monkeypatch, epoch):
    real = BestWeightsHook.after_val_epoch

    def scored(self, runner, metrics=None):  # the one that is cut off is the best
        real(self, runner, {**metrics, "IoU": 0.9 if runner.epoch == epoch else 0.1 * runner.epoch})

    monkeypatch.setattr(BestWeightsHook, "after_val_epoch", scored)
    reference = whole(tmp_path / "a", PLAIN)
    assert reference["finished"]["best_epoch"] == epoch
    once(ResumableHook, "before_val_epoch", lambda runner: runner.epoch == epoch)
    assert differences(reference, resumed(tmp_path / "b", PLAIN)) == []
    assert f"validation after epoch {epoch} is made up" in log_of(tmp_path / "b/work/stage1")


def test_a_validation_that_was_not_due_is_not_made_up(tmp_path, once):
    once(ResumableHook, "before_train_iter", lambda runner: runner.iter == 3)
    resumed(tmp_path, PLAIN, dict(train_cfg=dict(val_interval=2)))
    assert "is made up" not in log_of(tmp_path / "work/stage1")


def test_a_checkpoint_that_knows_its_score_alone_owes_the_validation(tmp_path, once):
    # save_best writes the checkpoint anew within the validation that it was the best of.
    best = dict(default_hooks=dict(checkpoint=dict(save_best="IoU", rule="greater")))
    reference = whole(tmp_path / "a", PLAIN, best)
    once(ResumableHook, "before_train_iter", lambda runner: runner.iter == 3)
    assert differences(reference, resumed(tmp_path / "b", PLAIN, best)) == []
    assert "validation after epoch 1 is made up" in log_of(tmp_path / "b/work/stage1")


def test_early_stopping_goes_on_counting(tmp_path, once, monkeypatch):
    real = EarlyStoppingHook.after_val_epoch

    def scored(self, runner, metrics):
        real(self, runner, dict(metrics, IoU=0.5 - 0.1 * runner.epoch))

    monkeypatch.setattr(EarlyStoppingHook, "after_val_epoch", scored)
    longer = dict(train_cfg=dict(max_epochs=8))
    reference = whole(tmp_path / "a", longer)
    assert reference["finished"]["epochs"] == 4  # the first, and three that were no better
    for epoch in (3, 4):
        folder = tmp_path / f"b{epoch}"
        once(ResumableHook, "before_val_epoch", lambda runner, e=epoch: runner.epoch == e)
        assert differences(reference, resumed(folder, longer)) == []


def test_an_epoch_goes_on_in_the_middle(tmp_path, once):
    steps = dict(default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1)))
    longer = dict(train_cfg=dict(max_epochs=3))

    train(prepared(toy(tmp_path / "a", longer, steps), tmp_path / "a/work/stage1"))
    for at in (4, 5, 6):  # three steps an epoch: within the second, at its end
        folder = tmp_path / f"b{at}"
        once(ResumableHook, "before_train_iter", lambda runner, i=at: runner.iter == i)
        go_on(toy(folder, longer, steps), folder / "work/stage1")
        assert differences(end(tmp_path / "a", 9), end(folder, 9)) == []


def test_weights_within_an_epoch_are_not_validated_as_those_of_the_one_before(tmp_path, once):
    steps = dict(default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1)))
    longer, work = dict(train_cfg=dict(max_epochs=3)), tmp_path / "work/stage1"
    once(ResumableHook, "before_train_iter", lambda runner: runner.iter == 4)
    with pytest.raises(Interrupt):
        train(prepared(toy(tmp_path, longer, steps), work))
    other = dict(train_dataloader=dict(batch_size=2))
    runner = train(prepared(toy(tmp_path, longer, steps, other), work, resume=True))
    assert len(runner.train_dataloader) != 3
    log = log_of(work)
    assert "is made up" not in log and "epoch 2, of which it had a part, begins anew" in log
    assert len(re.findall(r"epoch +1/3 +validation", log)) == 1


def by_iterations(folder, sampler, *hooks):
    """A toy's config of 8 steps, validated and kept after every second."""
    loop = dict(
        train_dataloader=dict(sampler=dict(type=sampler, shuffle=True)),
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=2)),
        log_processor=dict(by_epoch=False),
        param_scheduler=[dict(type="PolyLR", end=8, by_epoch=False)],
        custom_hooks=[*settings(1, folder)["custom_hooks"][:1], *hooks],
    )
    iterations = "\ntrain_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8, "
    iterations += "val_begin=2, val_interval=2)\n"
    path = toy(folder, loop)
    path.write_text(path.read_text() + iterations)
    return path


@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
def test_a_loop_by_iterations_goes_on_in_the_middle(tmp_path, once, sampler, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # mmengine's, where its loader restarts
    train(prepared(by_iterations(tmp_path / "a", sampler), tmp_path / "a/work/stage1"))
    for i, (method, at) in enumerate([("before_train_iter", 5), ("before_val_epoch", 4)]):
        folder = tmp_path / f"b{i}"
        once(ResumableHook, method, lambda runner, at=at: runner.iter == at)
        go_on(by_iterations(folder, sampler), folder / "work/stage1")
        assert "validation after iteration 4 is made up" in log_of(folder / "work/stage1")
        assert differences(end(tmp_path / "a", 8), end(folder, 8)) == []
    folder = tmp_path / "signal"
    work = folder / "work" / "stage1"
    config = by_iterations(folder, sampler, *signal_at(4)["custom_hooks"])
    assert call(monkeypatch, "train", config, "--work-dir", work) == 128 + signal.SIGTERM
    assert (work / "last_checkpoint").read_text() == str(work / "interrupted_5.pth")
    train(prepared(by_iterations(folder, sampler), work, resume=True))
    assert differences(end(tmp_path / "a", 8), end(folder, 8)) == []


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(tmp_path, once):
    drawn = dict(randomness=dict(seed=None))
    once(ResumableHook, "before_train_iter", lambda runner: runner.iter == 4)
    config, work = toy(tmp_path, PLAIN, drawn), tmp_path / "work/stage1"
    with pytest.raises(Interrupt):
        train(prepared(config, work))
    last = torch.load(work / "epoch_1.pth", weights_only=False)
    runner = train(prepared(config, work, resume=True))
    assert runner.seed == runner.train_dataloader.sampler.seed == last["meta"]["seed"]


def test_best_weights_that_are_gone_are_said_and_made_anew(tmp_path, once):
    once(ResumableHook, "before_train_iter", lambda runner: runner.iter == 7)
    with pytest.raises(Interrupt):
        train(prepared(toy(tmp_path, PLAIN), tmp_path / "work/stage1"))
    (tmp_path / BEST).unlink()
    train(prepared(toy(tmp_path, PLAIN), tmp_path / "work/stage1", resume=True))
    assert read_meta(tmp_path / BEST)["epoch"] in (2, 3)
    assert "are gone from there" in log_of(tmp_path / "work/stage1")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (dict(save_optimiser=False), "no key 'save_optimiser'; did you mean 'save_optimizer'"),
        (dict(max_keep_ckpts=2.5), "max_keep_ckpts=2.5 is no whole number"),
    ],
)
def test_a_wrong_key_of_the_checkpoints_is_told_before_the_first_step(tmp_path, once, key, words):
    once(ResumableHook, "before_train_iter", lambda runner: True)
    wrong = dict(default_hooks=dict(checkpoint=key))
    with pytest.raises(ValueError, match=words):
        train(prepared(toy(tmp_path, PLAIN, wrong), tmp_path / "work/stage1"))


def test_an_old_checkpoint_goes_after_the_new_one_is_there(tmp_path, monkeypatch):
    one = dict(default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    seen = []
    real = Theirs._save_checkpoint_with_step

    def there():
        return sorted(p.name for p in (tmp_path / "work/stage1").glob("epoch_*.pth"))

    def saved(self, runner, step, meta):
        seen.append(there())
        real(self, runner, step, meta)
        seen.append(there())

    monkeypatch.setattr(Theirs, "_save_checkpoint_with_step", saved)
    train(prepared(toy(tmp_path, PLAIN, one), tmp_path / "work/stage1"))
    names = [f"epoch_{i}.pth" for i in (1, 2, 3)]
    assert seen == [[], names[:1], names[:1], names[:2], names[1:2], names[1:]]
    assert there() == names[2:]


@pytest.fixture
def broken(monkeypatch):
    """``broken(iteration)``: from its step on the weights are NaN, each time it is made."""

    def at(iteration):
        def after(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == iteration:
                runner.message_hub.update_scalar("train/grad_norm", float("nan"))
                next(runner.model.parameters()).data.fill_(float("nan"))

        monkeypatch.setattr(ResumableHook, "after_train_iter", after)

    return at


def test_weights_that_are_not_finite_are_never_saved(tmp_path, broken):
    work = tmp_path / "work/stage1"
    broken(7)  # the first of epoch 3
    message = r"weights became non-finite at iteration 7: .*backbone.*earlier checkpoints stay"
    for resume in (False, True, True, True):
        with pytest.raises(ValueError, match=message):
            train(prepared(toy(tmp_path, PLAIN), work, resume=resume))
        assert sorted(p.name for p in work.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    assert all(v.isfinite().all() for v in read_weights(tmp_path / BEST).values())


def test_without_checkpoints_they_are_not_validated_nor_left(tmp_path, broken):
    off = dict(default_hooks=dict(checkpoint=dict(interval=-1, save_last=False)))
    broken(2)
    for more in ({}, dict(val_cfg=None, val_dataloader=None, val_evaluator=None)):
        with pytest.raises(ValueError, match="non-finite at iteration 2"):
            train(prepared(toy(tmp_path, PLAIN, off, more), tmp_path / "work/stage1"))
    assert not (tmp_path / BEST).exists()


SHORT = dict(train_cfg=dict(max_epochs=3))  # of three steps each


@pytest.mark.parametrize(
    ("step", "saved"),
    [(0, "interrupted_1"), (4, "interrupted_5"), (5, "epoch_2"), (8, "epoch_3")],
)
def test_a_signal_costs_no_step(tmp_path, monkeypatch, capfd, step, saved):
    reference = whole(tmp_path / "a", SHORT)
    folder = tmp_path / "b"
    work = folder / "work" / "stage1"
    hooks = settings(1, folder)["custom_hooks"] + signal_at(step)["custom_hooks"]
    config = toy(folder, SHORT, dict(custom_hooks=hooks))
    assert call(monkeypatch, "train", config, "--work-dir", work) == 128 + signal.SIGTERM
    assert (work / "last_checkpoint").read_text() == str(work / f"{saved}.pth")
    told = capfd.readouterr().err
    assert told.count("interrupted by") == 1 and "Traceback" not in told
    assert f"by SIGTERM: {work / saved}.pth holds everything; go on with: python " in told
    assert not list(folder.rglob(".*lock"))
    capfd.readouterr()
    train(prepared(toy(folder, SHORT), work, resume=True))
    assert differences(reference, left(folder, 1)) == []
    assert not list(work.glob("interrupted_*"))
    # The steps that it shows are those of the epoch, not those since it was resumed.
    shown = re.findall(r"epoch (\d)/3  step (\d)/3", log_of(work))
    every = [(str(i // 3 + 1), str(i % 3 + 1)) for i in range(9)]
    assert sorted(shown) == every


@pytest.mark.parametrize(("step", "saved"), [(3, "interrupted_5"), (5, "epoch_2")])
def test_an_accumulated_gradient_is_made_whole_first(tmp_path, monkeypatch, step, saved):
    # Epochs of three batches: groups of two and of one.
    groups = dict(optim_wrapper=dict(accumulative_counts=2))
    reference = whole(tmp_path / "a", SHORT, groups)
    folder = tmp_path / "b"
    work = folder / "work" / "stage1"
    hooks = settings(1, folder)["custom_hooks"] + signal_at(step)["custom_hooks"]
    config = toy(folder, SHORT, groups, dict(custom_hooks=hooks))
    assert call(monkeypatch, "train", config, "--work-dir", work) == 143
    assert (work / "last_checkpoint").read_text() == str(work / f"{saved}.pth")
    train(prepared(toy(folder, SHORT, groups), work, resume=True))
    assert differences(reference, left(folder, 1)) == []


def test_where_no_step_can_be_kept_the_loss_is_told(tmp_path, monkeypatch, capfd):
    hooks = dict(custom_hooks=signal_at(4)["custom_hooks"])
    work = tmp_path / "work"

    def full(self, runner, checkpoint):
        if runner.iter % 3:  # not at the end of an epoch
            raise OSError("disk full")

    monkeypatch.setattr(InterruptionHook, "before_save_checkpoint", full)
    assert call(monkeypatch, "train", toy(tmp_path, SHORT, hooks), "--work-dir", work) == 143
    text = f"{work / 'epoch_1.pth'} holds everything but the last 2 steps, which are lost; go on"
    assert text in capfd.readouterr().err
    assert sorted(path.name for path in work.glob("*.pth")) == ["epoch_1.pth"]


def test_two_ranks_stop_together_and_go_on_to_the_same(tmp_path):
    ranks = [tmp_path / name for name in ("a", "b")]
    ends = []
    for folder in ranks:
        folder.mkdir()
        many = dict(train_dataloader=dict(dataset=dict(length=24)))  # three steps of two times four
        at = signal_at(3, rank=1) if folder.name == "b" else {}
        config = write_config(folder, 1, ONE_EXPERT, many, at, epochs=2)
        command = ("train", config, "--work-dir", folder / "work")
        if at:
            with pytest.raises(ProcessExitedException, match="143"):
                on_two_ranks(*command, cwd=folder)
            assert (folder / "work" / "interrupted_5.pth").is_file()
            command += ("--resume",)
        on_two_ranks(*command, cwd=folder)
        ends.append((read_weights(folder / "work/epoch_2.pth"), read_weights(folder / BEST)))
    for one, other in zip(*ends, strict=True):
        assert_same(one, other, atol=0, rtol=0)


def test_the_time_of_a_run_that_was_cut_off_is_that_of_all_its_parts(tmp_path):
    """Log and report had that of the last part as the cost of the stage."""
    config, work = write_config(tmp_path, 1, ONE_EXPERT), tmp_path / "work"
    train(prepared(config, work))
    checkpoint = read_pickle(work / "epoch_1.pth")
    assert 0 < checkpoint["seconds"] < 100
    torch.save({**checkpoint, "seconds": 1000.0}, work / "epoch_1.pth")
    train(prepared(config, work, resume=True))
    assert 1000 < json.loads((work / "finished.json").read_text())["seconds"] < 1100
    assert "1 epoch(s), in 16:4" in log_of(work)

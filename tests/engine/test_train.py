"""Real trainings in miniature, through ``engine.launch.train``."""

import json
import re

import pytest
import torch
from miniature import ONE_EXPERT, TWO_EXPERTS, build, log_of, prepared, weights, write_config

from codmoe.datasets.synthetic import SyntheticCamouflage
from codmoe.engine.checkpoints import read_weights, save_weights
from codmoe.engine.hooks.training import BestWeightsHook, TrainingProgressHook
from codmoe.engine.launch import settle, train
from codmoe.engine.optim import settle_amp
from codmoe.models import ModelLevelMoE


class Interrupt(Exception):
    pass


@pytest.fixture
def interrupt(monkeypatch):
    """``interrupt(iteration)``: the next training ends there, once."""

    def at(iteration):
        real = TrainingProgressHook.before_train_iter

        def before(self, runner, batch_idx, data_batch=None):
            if runner.iter == iteration:
                monkeypatch.setattr(TrainingProgressHook, "before_train_iter", real)
                raise Interrupt
            real(self, runner, batch_idx, data_batch)

        monkeypatch.setattr(TrainingProgressHook, "before_train_iter", before)

    return at


@pytest.fixture
def scores(monkeypatch):
    """``scores(0.5, 0.4)``: what the validations after epoch 1, 2, ... measure."""

    def give(*values):
        real = BestWeightsHook.after_val_epoch

        def after(self, runner, metrics=None):
            real(self, runner, {**metrics, "IoU": values[runner.epoch - 1]})

        monkeypatch.setattr(BestWeightsHook, "after_val_epoch", after)

    return give


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], msg=lambda m, k=key: f"{k}: {m}", **tolerance)


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
    config = write_config(tmp_path, 1, TWO_EXPERTS, epochs=3)
    train(prepared(config, tmp_path / "whole"))
    reference = read_weights(tmp_path / "whole" / "epoch_3.pth")
    whole_best = weights(tmp_path / "weights" / "experts_joint_best.pth")

    work_dir = tmp_path / "parts"
    interrupt(3)  # in the middle of epoch 2
    with pytest.raises(Interrupt):
        train(prepared(config, work_dir))
    assert not (work_dir / "finished.json").exists()
    assert (work_dir / "epoch_1.pth").is_file() and not (work_dir / "epoch_2.pth").exists()
    runner = train(prepared(config, work_dir, resume=True))
    assert re.search(r"resumed epoch: 1, iter: 2", log_of(work_dir))
    assert runner.iter == 6
    resumed = read_weights(work_dir / "epoch_3.pth")
    assert_same(resumed, reference, atol=1e-6, rtol=1e-5)
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    assert_same(best, whole_best, atol=1e-6, rtol=1e-5)
    # It matters: two epochs in place of three would not have done.
    first = read_weights(work_dir / "epoch_2.pth")
    assert any(not torch.allclose(first[k].float(), v.float()) for k, v in reference.items())


def test_a_resumed_run_remembers_the_best_of_the_validation_after_its_checkpoint(
    tmp_path, interrupt, scores
):
    config, work_dir = write_config(tmp_path, 1, ONE_EXPERT, epochs=3), tmp_path / "work"
    scores(0.5, 0.4, 0.45)
    interrupt(2)  # epoch 1 is validated, which its checkpoint cannot know
    with pytest.raises(Interrupt):
        train(prepared(config, work_dir))
    path = tmp_path / "weights" / "experts_joint_best.pth"
    best = path.read_bytes()
    train(prepared(config, work_dir, resume=True))
    finished = json.loads((work_dir / "finished.json").read_text())
    assert (finished["best"], finished["best_epoch"]) == (0.5, 1)
    assert path.read_bytes() == best
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_new_run_takes_nothing_from_the_best_of_another(tmp_path, scores):
    config = write_config(tmp_path, 1, ONE_EXPERT, epochs=2)
    path = tmp_path / "weights" / "experts_joint_best.pth"
    save_weights(path, build(config), dict(score=0.9, epoch=3), "another")
    scores(0.2, 0.1)
    train(prepared(config, tmp_path / "work"))
    assert torch.load(path, weights_only=True)["meta"]["epoch"] == 1
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize(("values", "epoch"), [((0.6, 0.3), 1), ((float("nan"), 0.3), 2)])
def test_the_best_epoch_is_kept(tmp_path, scores, values, epoch):
    config, work_dir = write_config(tmp_path, 1, ONE_EXPERT, epochs=2), tmp_path / "work"
    scores(*values)
    train(prepared(config, work_dir))
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    assert_same(best, read_weights(work_dir / f"epoch_{epoch}.pth"), atol=0, rtol=0)
    assert ("IoU is NaN after epoch 1; not kept" in log_of(work_dir)) == (epoch == 2)


def test_starting_again_keeps_the_earlier_checkpoints(tmp_path):
    config, work_dir = write_config(tmp_path, 1, ONE_EXPERT), tmp_path / "work"
    train(prepared(config, work_dir))
    before = {p.name: p.read_bytes() for p in work_dir.iterdir() if p.is_file()}
    best = tmp_path / "weights" / "experts_joint_best.pth"
    earlier_best = best.read_bytes()
    train(prepared(config, work_dir, **{"randomness.seed": 1}))
    (folder,) = work_dir.glob("earlier-*")
    for name in ("epoch_1.pth", "last_checkpoint", "finished.json"):
        assert (folder / name).read_bytes() == before[name]
    assert (work_dir / "epoch_1.pth").read_bytes() != before["epoch_1.pth"]
    (kept,) = [p for p in best.parent.iterdir() if p != best]
    assert kept.read_bytes() == earlier_best and best.read_bytes() != earlier_best


def test_a_run_that_cannot_start_moves_nothing(tmp_path):
    work_dir = tmp_path / "work"
    train(prepared(write_config(tmp_path, 1, ONE_EXPERT), work_dir))
    wrong = write_config(tmp_path, 1, ONE_EXPERT, dict(model=dict(top_k=5)))
    with pytest.raises(ValueError):
        train(prepared(wrong, work_dir))
    assert not list(work_dir.glob("earlier-*")) and (work_dir / "last_checkpoint").is_file()


def test_resuming_nothing_is_refused(tmp_path):
    config = write_config(tmp_path, 2, TWO_EXPERTS)
    joint_weights(config)
    with pytest.raises(FileNotFoundError, match=r"work.last_checkpoint.*leave --resume out"):
        train(prepared(config, tmp_path / "work", resume=True))


def test_averaged_weights_are_what_is_kept(tmp_path):
    ema = dict(default_hooks=dict(ema=dict(type="EMAHook", momentum=0.25, update_buffers=True)))
    config = write_config(tmp_path, 1, TWO_EXPERTS, ema)
    raw = []
    with pytest.MonkeyPatch.context() as patch:
        # The last thing before EMAHook looks at the weights of a step.
        patch.setattr(
            TrainingProgressHook,
            "after_train_iter",
            lambda self, runner, *args, **kwargs: raw.append(
                {k: v.clone() for k, v in runner.model.state_dict().items()}
            ),
            raising=False,
        )
        train(prepared(config, tmp_path / "work"))
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    first, second = raw
    key = "backbone.body.patch_embed.proj.weight"
    assert not torch.equal(best[key], second[key])
    for key, value in best.items():
        if value.is_floating_point():
            # mmengine starts the average with the weights after the first step.
            expected = 0.75 * first[key] + 0.25 * second[key]
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4)


def test_without_validation_the_last_weights_are_kept(tmp_path):
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config = write_config(tmp_path, 1, ONE_EXPERT, off)
    train(prepared(config, tmp_path / "work"))
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    assert_same(best, read_weights(tmp_path / "work" / "epoch_1.pth"), atol=0, rtol=0)


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
        assert "make quickstart" in str(caught.value)
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
    for word in (str(path), "keys differ in shape", "experts.sinet.", "make quickstart"):
        assert word in str(caught.value)
    assert steps == []


def test_sync_bn_is_refused_where_it_would_hang(tmp_path):
    cfg = prepared(write_config(tmp_path), tmp_path / "work", sync_bn="torch")
    with pytest.raises(ValueError, match=r"sync_bn='torch'.*train_dispatch='dense'"):
        train(cfg)
    cfg.model.train_dispatch = "dense"
    assert settle(cfg).every_expert_runs


@pytest.mark.parametrize(
    ("cuda", "bf16", "amp", "wrapper"),
    [
        (False, False, True, dict(type="CODOptimWrapper")),
        (True, True, False, dict(type="CODOptimWrapper")),
        (True, True, True, dict(type="CODAmpOptimWrapper", dtype="bfloat16", loss_scale=1.0)),
        (True, False, True, dict(type="CODAmpOptimWrapper", dtype="float16", loss_scale="dynamic")),
        (
            True,
            True,
            "fp16",
            dict(type="CODAmpOptimWrapper", dtype="float16", loss_scale="dynamic"),
        ),
        (True, True, "bf16", dict(type="CODAmpOptimWrapper", dtype="bfloat16", loss_scale=1.0)),
        (False, False, "fp16", dict(type="CODOptimWrapper")),
    ],
)
def test_precision_is_the_machines(tmp_path, monkeypatch, cuda, bf16, amp, wrapper):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    # T4 emulates bf16, slowly, and would say yes if it were asked without the argument.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    from codmoe.engine.config import load_config

    cfg = load_config(write_config(tmp_path), {"amp": amp})
    said = settle_amp(cfg)
    chosen = {k: v for k, v in cfg.optim_wrapper.items() if k in ("type", "dtype", "loss_scale")}
    assert chosen == wrapper
    assert said.startswith(wrapper.get("dtype", "float32"))


def test_a_precision_that_cannot_be_is_told(tmp_path, monkeypatch):
    from codmoe.engine.config import load_config

    config = write_config(tmp_path)
    with pytest.raises(ValueError, match=r"amp='half' is unknown; use True .*'fp16'"):
        load_config(config, {"amp": "half"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match=r"amp='bf16': Tesla T4 has no bf16; use amp='fp16'"):
        settle_amp(load_config(config, {"amp": "bf16"}))


def test_a_misspelt_monitor_is_told(tmp_path):
    config = write_config(
        tmp_path, 1, ONE_EXPERT, dict(default_hooks=dict(best=dict(monitor="Dcie")))
    )
    with pytest.raises(ValueError, match=r"default_hooks.best.monitor='Dcie'.*'Dice'"):
        train(prepared(config, tmp_path / "work"))


def test_no_loss_among_the_monitors_and_one_line_for_the_environment(tmp_path):
    """mmengine logs a hundred lines of environment and one for each parameter."""
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    train(prepared(write_config(tmp_path, 1, ONE_EXPERT, off), tmp_path / "work"))
    log = log_of(tmp_path / "work")
    assert len(log.splitlines()) < 40
    assert "1 × " in log and "paramwise_options" not in log

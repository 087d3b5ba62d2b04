"""Hooks of every training: best weights, statistics, warm-up, and what ends a run early."""

import itertools
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from folders import add
from miniature import (
    ONE_EXPERT,
    ROOT,
    SIZE,
    STOP,
    TWO_EXPERTS,
    Interrupt,
    assert_same,
    build,
    call,
    free_port,
    log_of,
    on_two_ranks,
    prepared,
    ranks,
    weights,
    write_config,
)
from mmengine.hooks import EMAHook
from torch import nn
from torch.utils.data import DataLoader

from codmoe.datasets import CODDataset, TolerantDataset
from codmoe.engine.checkpoints import read_weights, save_weights
from codmoe.engine.config import load_config
from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.engine.hooks.training import (
    AverageBuffersHook,
    BestWeightsHook,
    FiniteLossHook,
    TrainingProgressHook,
    UnreadableFilesHook,
)
from codmoe.engine.launch import build_runner, settle, train
from codmoe.engine.optim import CODOptimWrapper
from codmoe.engine.runner import DeferredMessageHub


@pytest.fixture
def scores(monkeypatch):
    """``scores(0.5, 0.4)``: what the validations after epoch 1, 2, ... measure."""

    def give(*values):
        real = BestWeightsHook.after_val_epoch

        def after(self, runner, metrics=None):
            real(self, runner, {**metrics, "IoU": values[runner.epoch - 1]})

        monkeypatch.setattr(BestWeightsHook, "after_val_epoch", after)

    return give


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


def test_averaged_weights_are_what_is_kept(tmp_path):
    ema = dict(default_hooks=dict(ema=dict(type="EMAHook", momentum=0.25, update_buffers=True)))
    config = write_config(tmp_path, 1, ONE_EXPERT, ema)
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


@pytest.mark.parametrize("hooks", [{}, dict(ema=dict(type="EMAHook", momentum=0.25))])
def test_without_validation_the_last_weights_are_kept(tmp_path, hooks):
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None, default_hooks=hooks)
    config = write_config(tmp_path, 1, ONE_EXPERT, off)
    train(prepared(config, tmp_path / "work"))
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    # With EMA the averaged ones are there, too.
    assert_same(best, read_weights(tmp_path / "work" / "epoch_1.pth"), atol=0, rtol=0)


def test_a_misspelt_monitor_is_told(tmp_path):
    config = write_config(
        tmp_path, 1, ONE_EXPERT, dict(default_hooks=dict(best=dict(monitor="Dcie")))
    )
    with pytest.raises(ValueError, match=r"default_hooks.best.monitor='Dcie'.*'Dice'"):
        train(prepared(config, tmp_path / "work"))


class Runner:
    _train_loop = None

    def __init__(self, model):
        self.model = model
        self.hooks = []


def average(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = nn.ModuleDict(dict(backbone=nn.BatchNorm1d(1), router=nn.BatchNorm1d(1)))
    model.frozen = ("backbone",)
    for norm in model.values():
        norm.running_mean.fill_(1 + 2 * rank)
    runner, ema = Runner(model), EMAHook(update_buffers=True)
    ema.before_run(runner)
    runner.hooks = [ema]
    hook = AverageBuffersHook()
    hook.before_val_epoch(runner)  # a loop by epochs has its own time for it
    assert model["router"].running_mean.item() == 1 + 2 * rank
    hook.after_train_epoch(runner)
    torch.save(model.state_dict(), os.path.join(folder, f"{rank}.pth"))
    torch.save(ema.ema_model.module.state_dict(), os.path.join(folder, f"ema{rank}.pth"))
    leave_cpu_process_group()


def test_processes_end_an_epoch_with_the_same_statistics(tmp_path):

    ranks(average, free_port(), str(tmp_path))
    states = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert [state["router.running_mean"].item() for state in states] == [2, 2]
    # What EMAHook validates and keeps.
    states += [torch.load(tmp_path / f"ema{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert [state["router.running_mean"].item() for state in states[2:]] == [2, 2]
    assert [state["backbone.running_mean"].item() for state in states] == [1, 3] * 2  # frozen


HELD = dict(default_hooks=dict(warmup=dict(epochs=1)), model=dict(experts=dict(pranet=None)))


def watched(monkeypatch):
    """(epoch, body in training mode, body learns) of every step, and the weights before it."""
    seen = []
    real = TrainingProgressHook.after_train_iter

    def after(self, runner, *args, **kwargs):
        real(self, runner, *args, **kwargs)
        body = runner.model.backbone.body
        learns = {p.requires_grad for p in body.parameters()}
        first = next(body.parameters()).detach().clone()
        seen.append((runner.epoch, body.training, learns, first))

    monkeypatch.setattr(TrainingProgressHook, "after_train_iter", after)
    return seen


def test_the_body_is_held_for_an_epoch_and_then_learns(tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    config = write_config(tmp_path, 1, TWO_EXPERTS, HELD, epochs=2)
    train(prepared(config, tmp_path / "work"))
    assert [(e, t, learns) for e, t, learns, _ in seen] == [
        (0, False, {False}),
        (0, False, {False}),
        (1, True, {True}),
        (1, True, {True}),
    ]
    assert torch.equal(seen[0][3], seen[1][3]) and not torch.equal(seen[1][3], seen[3][3])
    assert "backbone.body is held until epoch 1 is over" in log_of(tmp_path / "work")


def test_own_blocks_of_experts_are_the_backbones_in_training(tmp_path, monkeypatch):
    """Held and then raised in the warm-up, at the backbone's rate; kept in the weights."""
    steps = []
    real = TrainingProgressHook.after_train_iter

    def after(self, runner, *args, **kwargs):
        real(self, runner, *args, **kwargs)
        body = runner.model.experts.sinet.backbone.body
        rates = {
            group["lr"]
            for group in runner.optim_wrapper.param_groups
            for p in group["params"]
            if any(p is own for own in body.parameters())
        }
        steps.append((body.training, next(body.parameters()).requires_grad, rates))

    monkeypatch.setattr(TrainingProgressHook, "after_train_iter", after)
    own = dict(model=dict(experts=dict(sinet=dict(own_blocks=1))), param_scheduler=[])
    own["train_cfg"] = dict(val_interval=2)  # the last weights are the best
    config = write_config(tmp_path, 1, TWO_EXPERTS, HELD, body_rate(0.25), own, epochs=2)
    runner = train(prepared(config, tmp_path / "work"))
    rate = 0.25 * runner.cfg.optim_wrapper.optimizer.lr
    assert [step[:2] for step in steps] == [(False, False)] * 2 + [(True, True)] * 2
    assert [step[2].pop() / rate for step in steps] == pytest.approx([1, 1, 1 / 3, 2 / 3])
    left = weights(tmp_path / "weights" / "experts_joint_best.pth")
    state = runner.model.state_dict()
    blocks = [key for key in left if key.startswith("experts.sinet.backbone.body.")]
    assert blocks and all(torch.equal(left[key], state[key]) for key in blocks)


def body_rate(mult):
    keys = {"backbone.body": dict(lr_mult=mult)}
    return dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=keys)))


def test_after_the_warm_up_the_rate_of_the_body_rises(tmp_path, monkeypatch):
    rates = []
    real = CODOptimWrapper.step

    def step(self, *args, **kwargs):
        rates.append(sorted({group["lr"] for group in self.param_groups}))
        real(self, *args, **kwargs)

    monkeypatch.setattr(CODOptimWrapper, "step", step)
    ramp = dict(default_hooks=dict(warmup=dict(ramp=2)), param_scheduler=[])
    config = write_config(tmp_path, 1, TWO_EXPERTS, HELD, ramp, body_rate(0.1), epochs=4)
    runner = train(prepared(config, tmp_path / "work"))
    base = runner.cfg.optim_wrapper.optimizer.lr
    # Two steps an epoch: held for one, rising for two (of which each step is a fifth), at a tenth.
    shares = [1, 1, 0.2, 0.4, 0.6, 0.8, 1, 1]
    assert [low for low, _ in rates] == pytest.approx([0.1 * base * share for share in shares])
    assert [high for _, high in rates] == pytest.approx([base] * 8)


def test_a_body_that_shares_its_rate_cannot_rise_alone(tmp_path):
    same = dict(optim_wrapper=dict(paramwise_cfg=dict(_delete_=True, bias_decay_mult=0.0)))
    ramp = dict(default_hooks=dict(warmup=dict(ramp=1)))
    config = write_config(tmp_path, 1, TWO_EXPERTS, HELD, ramp, same, epochs=2)
    with pytest.raises(ValueError, match=r"warmup.ramp: backbone.body shares its rate"):
        train(prepared(config, tmp_path / "work"))


def test_resuming_inside_and_behind_the_warm_up(tmp_path, monkeypatch):
    longer = dict(default_hooks=dict(warmup=dict(epochs=2)))
    for hold, expected in ((longer, [{False}] * 2 + [{True}] * 2), (HELD, [{True}] * 4)):
        folder = tmp_path / str(len(expected[0] & {False}))
        folder.mkdir()
        stopped = write_config(folder, 1, TWO_EXPERTS, HELD, hold, STOP, epochs=3)
        train(prepared(stopped, folder / "work"))
        seen = watched(monkeypatch)
        config = write_config(folder, 1, TWO_EXPERTS, HELD, hold, epochs=3)
        train(prepared(config, folder / "work", resume=True))
        assert [learns for _, _, learns, _ in seen] == expected
        monkeypatch.undo()


RANK_WEIGHTS = """
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from codmoe.registry import HOOKS

@HOOKS.register_module()
class RankWeights(Hook):
    def after_train(self, runner):
        weights = dict(runner.model.module.named_parameters())
        torch.save({k: p.detach() for k, p in weights.items()}, f"rank{get_rank()}.pth")
"""


@pytest.mark.parametrize("option", ["find_unused_parameters", "static_graph"])
def test_two_processes(tmp_path, option):
    """DDP that searches for nothing: it is told anew who learns."""
    two = dict(train_dataloader=dict(batch_size=2), val_dataloader=dict(batch_size=2))
    two |= dict(model_wrapper_cfg={option: option == "static_graph"})
    (tmp_path / "rank_weights.py").write_text(RANK_WEIGHTS)
    two |= dict(custom_imports=dict(imports=["rank_weights"]))
    two |= dict(custom_hooks=[dict(type="RankWeights")])
    config = write_config(tmp_path, 1, TWO_EXPERTS, HELD, two, epochs=2)
    on_two_ranks("train", config, "--work-dir", tmp_path / "work", cwd=tmp_path)
    assert "warm-up is over" in log_of(tmp_path / "work")
    state = torch.load(tmp_path / "work" / "epoch_2.pth", weights_only=False)["optimizer"]["state"]
    steps = {int(values["step"]) for values in state.values()}
    assert steps == {2, 4}  # the body's moments began with the second epoch
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    for name, weight in first.items():  # of all parts: gradients were averaged before and after
        assert torch.equal(weight, second[name]), name


def test_epochs_must_be_a_number(tmp_path):
    wrong = dict(default_hooks=dict(warmup=dict(epochs=0.5)))
    config = write_config(tmp_path, 1, TWO_EXPERTS, wrong)
    with pytest.raises(ValueError, match=r"warmup: .*epochs=0.5 .*takes int"):
        build_runner(settle(prepared(config, tmp_path / "work")))


def test_a_loop_without_epochs_is_refused(tmp_path):
    """The backbone would be held until the end of training."""
    loop = {
        "train_cfg.type": "IterBasedTrainLoop",
        "train_cfg.max_iters": 4,
        "train_cfg.val_interval": 2,
        "param_scheduler": [],
        "default_hooks.checkpoint.by_epoch": False,
        "log_processor.by_epoch": False,
    }

    def by_steps(work_dir, **changes):
        config = write_config(tmp_path, 1, TWO_EXPERTS, HELD)
        cfg = prepared(config, work_dir, **{**loop, **changes})
        del cfg.train_cfg["max_epochs"]
        return cfg

    with pytest.raises(ValueError, match=r"warmup.epochs=1 .*IterBasedTrainLoop.*warmup=None"):
        train(by_steps(tmp_path / "held"))
    assert train(by_steps(tmp_path / "free", **{"default_hooks.warmup.epochs": 0})).iter == 4


def test_what_is_new_in_a_vit_learns_in_the_warm_up(tmp_path):
    vit = dict(
        _delete_=True,
        type="ViTPyramid",
        name="vit_tiny_patch16_224",
        image_size=SIZE,
        timm_args=dict(depth=1),
    )
    config = write_config(tmp_path, 1, TWO_EXPERTS, HELD, dict(model=dict(backbone=vit)))
    start = {}
    real = TrainingProgressHook.before_train

    def before(self, runner):
        real(self, runner)
        start.update({k: v.clone() for k, v in runner.model.backbone.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgressHook, "before_train", before)
        runner = train(prepared(config, tmp_path / "work"))
    end = runner.model.backbone.state_dict()
    changed = {key.split(".")[0] for key in end if not torch.equal(end[key], start[key])}
    assert changed == {"scales", "outputs"}
    assert all(p.requires_grad for p in runner.model.backbone.parameters())  # given back


def test_shipped_configs():
    root = ROOT / "configs"
    for name in ("experts/joint", "experts/joint_polyp_dinov2-s"):
        cfg = load_config(root / f"{name}.py")
        assert cfg.default_hooks.warmup.epochs == 1
        assert cfg.model.expert_execution == "sequential"
    quick = load_config(root / "quickstart/stage1.py")
    assert quick.default_hooks.warmup.epochs == 0  # its heads are not random
    quick.model.backbone.checkpoint = None  # the shipped weights hold it
    assert build(quick).expert_training.execution == "together"
    assert load_config(root / "ensemble/stage3.py").model.expert_execution == "checkpoint"


def steps(hook, losses, norms=(), accumulated=1):
    """Steps of these losses, of which each ``accumulated``-th makes an update."""
    hub = DeferredMessageHub("finite")
    parts = dict(model=torch.nn.Linear(1, 1), hooks=[])
    runner = SimpleNamespace(logger=logging.getLogger("test"), message_hub=hub, **parts)
    norms = iter(norms)
    for runner.iter, loss in enumerate(losses):
        if (runner.iter + 1) % accumulated == 0 and (norm := next(norms, None)) is not None:
            hub.update_scalar("train/grad_norm", torch.tensor(norm))
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(loss)))
    return next(norms, None)


def test_a_loss_that_stays_nan_ends_the_training():
    nan = float("nan")
    with pytest.raises(ValueError, match=r"last 2 times.*every 3 steps.*amp=False"):
        steps(FiniteLossHook(interval=3, patience=2), [1.0, 1.0, nan, 1.0, 1.0, float("inf")])


@pytest.mark.parametrize("accumulated", [1, 5])
def test_a_gradient_that_stays_nan_ends_it_though_the_loss_is_fine(accumulated):
    norms = itertools.chain([1.0, float("inf"), 2.0], itertools.repeat(float("nan")))
    with pytest.raises(ValueError, match=r"in each of the last 30 updates.*amp=False"):
        steps(FiniteLossHook(interval=10), [1.0] * 200, norms, accumulated)


@pytest.mark.parametrize("interval", [1, 50])
@pytest.mark.parametrize("accumulated", [1, 32, 128])
def test_a_search_for_the_loss_scale_does_not(interval, accumulated):
    inf = float("inf")
    norms = [*[inf] * 16, *[1.0, inf] * 200]
    assert steps(FiniteLossHook(interval), [1.0] * 200, norms, accumulated) is not None


def test_single_overflows_do_not():
    # The loss scaler halves its scale and goes on.
    nan = float("nan")
    steps(FiniteLossHook(interval=1, patience=2), [nan, 1.0, nan, 1.0])
    steps(FiniteLossHook(interval=3, patience=1), [nan, nan, 1.0])


LOAD = [dict(type="LoadCODPair"), dict(type="Resize", scale=(64, 64), keep_ratio=False)]


def with_bad_files(tmp_path, bad, *changes, bad_val=()):
    """A training on 40 images of which some are truncated, with two workers."""
    stems = [f"{i:02d}" for i in range(40)]
    add(tmp_path / "train", "images", "masks", stems, size=(32, 32))
    add(tmp_path / "val", "images", "masks", stems[:4], size=(32, 32))
    for part, numbers in (("train", bad), ("val", bad_val)):
        for i in numbers:
            path = tmp_path / part / "images" / f"{i:02d}.jpg"
            path.write_bytes(path.read_bytes()[:100])

    def dataset(part, **pack):
        pipeline = [*LOAD, dict(type="PackCODInputs", **pack)]
        root = str(tmp_path / part)
        return dict(type="CODDataset", data_root=root, check_files=False, pipeline=pipeline)

    path = write_config(tmp_path, 1, ONE_EXPERT, *changes)
    lines = [
        "train_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True, "
        f"dataset=dict(_delete_=True, **{dataset('train')!r}))",
        "val_dataloader = dict(batch_size=4, num_workers=1, persistent_workers=True, "
        f"dataset=dict(_delete_=True, **{dataset('val', keep_original=True)!r}))",
    ]
    child = path.with_name(f"bad_{path.name}")
    child.write_text("\n".join([f"_base_ = [{str(path)!r}]", *lines]) + "\n")
    return child


def test_each_is_reported_once_and_training_goes_on(tmp_path, monkeypatch):
    work, again = tmp_path / "work", tmp_path / "again"
    path = with_bad_files(
        tmp_path, [3, 30], dict(train_cfg=dict(max_epochs=2), max_unreadable=0.05)
    )
    left = work / path.name  # the config as the run leaves it, which must not be wrapped again
    one_epoch = ("--cfg-options", "train_cfg.max_epochs=1")
    for config, folder, options in ((path, work, ()), (left, again, one_epoch)):
        assert call(monkeypatch, "train", config, "--work-dir", folder, *options) is None
        log = log_of(folder)
        for name in ("03.jpg", "30.jpg"):
            assert log.count(f"images/{name} is unreadable") == 1
        assert log.count("replaced by another sample: ") == 2
        assert (folder / "finished.json").is_file()
    assert "TolerantDataset" in left.read_text()


def test_too_many_end_it_with_the_list(tmp_path, monkeypatch):
    work = tmp_path / "work"
    path = with_bad_files(tmp_path, [3, 30, 31], dict(max_unreadable=0.05))
    code = call(monkeypatch, "train", path, "--work-dir", work)
    assert code.startswith(
        "error: 3 of 40 training samples are unreadable, and max_unreadable=0.05"
    )
    assert all(f"images/{name}.jpg" in code for name in ("03", "30", "31")) and "\n" not in code
    assert not (work / "finished.json").exists()


def test_in_validation_it_is_an_error(tmp_path, monkeypatch):
    path = with_bad_files(tmp_path, [], dict(max_unreadable=0.9), bad_val=[2])
    code = call(monkeypatch, "train", path, "--work-dir", tmp_path / "work")
    assert code.startswith(f"error: {tmp_path}/val/images/02.jpg is unreadable"), code
    assert "\n" not in code


class LoggingRunner:
    """As much of a runner as the hook asks for."""

    def __init__(self, dataset):
        self.train_dataloader = DataLoader(dataset)
        self.model, self.iter, self.lines = nn.Linear(1, 1), 49, []
        self.logger = self
        self.warning = self.lines.append


def meet_one_bad_file(rank, port, root):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    source = CODDataset(root, check_files=False, pipeline=LOAD)
    runner = LoggingRunner(TolerantDataset(source, max_share=0.05))  # one of 20
    hook = UnreadableFilesHook(interval=50)
    runner.train_dataloader.dataset[rank]
    runner.iter = 3
    hook.after_train_iter(runner, 3)  # not yet
    said, error = list(runner.lines), ""
    try:
        runner.iter = 49
        hook.after_train_iter(runner, 49)
    except ValueError as fault:
        error = str(fault)
    Path(root, f"{rank}.txt").write_text("\n".join([str(len(said)), *runner.lines, error]))
    leave_cpu_process_group()


def test_two_processes_count_together(tmp_path):
    """Each meets one bad file, which would be allowed; both stop at the same step."""
    add(tmp_path, "images", "masks", [f"{i:02d}" for i in range(20)])
    for name in ("00.jpg", "01.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    arguments = (free_port(), str(tmp_path))
    ranks(meet_one_bad_file, *arguments)
    for rank in (0, 1):
        early, first, second, error = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert early == "0"
        assert first.startswith(f"replaced by another sample: {tmp_path}/images/00.jpg")
        assert second.startswith(f"replaced by another sample: {tmp_path}/images/01.jpg")
        assert error.startswith("2 of 20 training samples are unreadable")

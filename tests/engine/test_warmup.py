"""The backbone waits while the heads are still random."""

import pytest
import torch
from miniature import ROOT, SIZE, STOP, TWO_EXPERTS, build, log_of, prepared, weights, write_config
from test_ddp import bash

from codmoe.engine.config import load_config
from codmoe.engine.hooks.training import TrainingProgressHook
from codmoe.engine.launch import build_runner, settle, train

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


def test_running_norms_survive_an_interruption(tmp_path, monkeypatch):
    balanced = dict(model=dict(expert_loss_normalization="gradient"))
    stopped = write_config(tmp_path, 1, TWO_EXPERTS, STOP, balanced, epochs=2)
    runner = train(prepared(stopped, tmp_path / "work"))
    left = runner.model.expert_training.balance.ratio.clone()
    assert torch.isfinite(left).all() and not torch.equal(left, torch.ones(2))
    checkpoint = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=False)
    assert torch.equal(checkpoint["gradient_balance"], left)
    best = weights(tmp_path / "weights" / "experts_joint_best.pth")
    assert {key.split(".")[0] for key in best} <= {"backbone", "experts", "router", "combiner"}
    first = []
    real = TrainingProgressHook.before_train_iter

    def before(self, runner, *args, **kwargs):
        real(self, runner, *args, **kwargs)
        first.append(runner.model.expert_training.balance.ratio.clone())

    monkeypatch.setattr(TrainingProgressHook, "before_train_iter", before)
    config = write_config(tmp_path, 1, TWO_EXPERTS, balanced, epochs=2)
    train(prepared(config, tmp_path / "work", resume=True))
    assert torch.equal(first[0], left)


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
    done = bash("dist_train.sh", config, 2, "--work-dir", tmp_path / "work", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
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
    with pytest.raises(ValueError, match=r"warmup.epochs=0.5 must be a whole number"):
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
        assert cfg.model.expert_loss_normalization is None
    quick = load_config(root / "quickstart/stage1.py")
    assert quick.default_hooks.warmup.epochs == 0  # nothing is pretrained there
    assert build(quick).expert_training.execution == "sequential"
    assert load_config(root / "ensemble/stage3.py").model.expert_execution == "checkpoint"

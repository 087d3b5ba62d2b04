"""What is told or kept right before hours of training, and not after."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from miniature import TWO_EXPERTS, build, images, prepared, write_config
from mmengine.hooks import EMAHook
from torch import nn

from codmoe.engine import stages
from codmoe.engine.checkpoints import load_parts, save_weights
from codmoe.engine.config import load_config
from codmoe.engine.hooks.training import AverageBuffersHook
from codmoe.engine.launch import train
from codmoe.engine.stages import plan, run_stages


def test_a_model_is_built_for_use(tmp_path):
    assert not build(write_config(tmp_path, 1, TWO_EXPERTS)).training


@pytest.mark.parametrize(
    "option, hint", [("max_epochs", "train_cfg.max_epochs"), ("data_root", "--data-root")]
)
def test_an_override_without_effect_is_told(option, hint):
    with pytest.raises(ValueError, match=rf"{option}: has no effect; use {hint}"):
        load_config("ensemble/stage3", {option: 3})


def test_fewer_images_than_a_batch_are_told(tmp_path):
    config = write_config(tmp_path, 1, TWO_EXPERTS, dict(train_dataloader=images(3)))
    with pytest.raises(ValueError, match=r"3 images, less than one batch of 4 .*batch_size"):
        train(prepared(config, tmp_path / "work"))


def test_a_missing_test_set_is_told_before_training(tmp_path, monkeypatch):
    missing = dict(type="CODDataset", data_root=str(tmp_path / "nowhere"))
    lost = dict(test_dataloader=dict(dataset=dict(datasets=dict(Mine=missing))))
    configs = [str(write_config(tmp_path, stage, lost)) for stage in (1, 2, 3)]
    monkeypatch.setattr(stages, "run_command", lambda command: pytest.fail("it ran"))
    with pytest.raises(FileNotFoundError, match=r"test_dataloader\.dataset: .*Mine.*nowhere"):
        run_stages(configs, work_dir=str(tmp_path / "work"))


def test_a_start_that_fails_does_not_pass_for_the_run_before(tmp_path, monkeypatch):
    configs = [str(write_config(tmp_path, stage, TWO_EXPERTS)) for stage in (1, 2, 3)]
    work = tmp_path / "work"
    first = plan(configs, work, [])[0]
    for path in (first.work_dir / "finished.json", first.weights):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    first.mark.write_text(first.fingerprint)
    assert first.is_finished()

    def fail(command):
        raise RuntimeError("the child failed")

    monkeypatch.setattr(stages, "run_command", fail)
    changed = ["train_cfg.max_epochs=7"]
    with pytest.raises(RuntimeError, match="the child failed"):
        run_stages(configs, work_dir=str(work), options=changed)
    assert not plan(configs, work, changed)[0].is_finished()
    assert list(first.work_dir.glob("earlier-*/finished.json"))  # set aside, not lost


def test_an_ablation_starts_from_the_whole_models_file(tmp_path):
    whole = build(write_config(tmp_path, 1))
    save_weights(tmp_path / "joint.pth", whole, {}, "run")
    fewer = build(write_config(tmp_path, 1, dict(model=dict(experts=dict(ujsc=None)))))
    keys = load_parts(fewer, tmp_path / "joint.pth", ("backbone", "experts"))
    assert not any(key.startswith("experts.ujsc") for key in keys)
    name = "experts.sinet.search.head.1.weight"
    assert torch.equal(fewer.state_dict()[name], whole.state_dict()[name])


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
    dist.destroy_process_group()


def test_processes_end_an_epoch_with_the_same_statistics(tmp_path):
    from test_ddp import free_port

    mp.spawn(average, args=(free_port(), str(tmp_path)), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert [state["router.running_mean"].item() for state in states] == [2, 2]
    # What EMAHook validates and keeps.
    states += [torch.load(tmp_path / f"ema{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert [state["router.running_mean"].item() for state in states[2:]] == [2, 2]
    assert [state["backbone.running_mean"].item() for state in states] == [1, 3] * 2  # frozen

"""Two processes on the CPU do what one does."""

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from miniature import (
    ONE_EXPERT,
    SIZE,
    STOP,
    TWO_EXPERTS,
    bash,
    build,
    free_port,
    log_of,
    on_two_ranks,
    prepared,
    ranks,
    weights,
    write_config,
)
from mmengine.config import Config
from torch import nn

from codmoe.engine.checkpoints import read_weights, save_weights
from codmoe.engine.config import load_config
from codmoe.engine.ddp import (
    CODDistributedDataParallel,
    every_expert_runs,
    idle_parameters,
    init_cpu_process_group,
    leave_cpu_process_group,
)
from codmoe.engine.hooks.training import TrainingProgressHook
from codmoe.engine.launch import settle, train
from codmoe.engine.runner import CODRunner
from codmoe.engine.testing import test as run_test
from codmoe.models import ModelLevelMoE
from codmoe.models.routers import Router

EXPERTS = dict(
    sinet=dict(type="SINetExpert", channels=8),
    pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
    zoomnet=dict(type="ZoomNetExpert", channels=8),
    ujsc=dict(type="UJSCExpert", channels=8, confidence_channels=8),
)


class MeanRouter(Router):
    """Routes by the sign of an image's mean: pranet and sinet, or ujsc and zoomnet."""

    def __init__(self, *, expert_names):
        super().__init__(in_channels=(1, 1, 1, 1), expert_names=expert_names, top_k=2)
        self.scores = nn.Parameter(torch.tensor([3.0, 2.5, -2.5, -3.0], dtype=torch.float64))

    def score(self, images, pyramid):
        return images.mean((1, 2, 3), keepdim=False)[:, None] * self.scores


def gradients(model, images, targets):
    model.zero_grad()
    losses = model(images, targets=targets, mode="loss")
    sum(value for key, value in losses.items() if "loss" in key).backward()
    bare = getattr(model, "module", model)
    zero = torch.zeros
    return {
        name: zero(p.shape) if p.grad is None else p.grad.clone()
        for name, p in bare.named_parameters()
    }


# Dispatch, and how the experts are run.
WAYS = ("sparse", "dense", "sequential", "checkpoint")


def make_model(way):
    torch.manual_seed(0)
    execution = way if way in ("sequential", "checkpoint") else "together"
    model = ModelLevelMoE(
        "pvt_v2_b0",
        experts=EXPERTS,
        router=dict(type="EvidenceRouter", width=8),
        mixture_loss=None if way == "sequential" else dict(type="StructureLoss"),
        expert_loss_weight=0.3,
        expert_execution=execution,
        checkpoint_backbone=None if execution == "together" else "extra",
        routing_losses=dict(
            balance=dict(type="LoadBalanceLoss", weight=1.0),
            z=dict(type="RouterZLoss", weight=0.1),
        ),
        train_dispatch="dense" if way == "dense" else "sparse",
    ).double()
    model.router = MeanRouter(expert_names=model.expert_names)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # batch statistics are each rank's own
    return model


def make_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    images += torch.tensor([1.0, 0.7, -1.0, -0.7], dtype=torch.float64)[:, None, None, None]
    targets = torch.zeros(4, 1, SIZE, SIZE, dtype=torch.float64)
    for i in range(4):
        targets[i, :, 10 : 30 + 5 * i, 8 : 40 - 4 * i] = 1
    return images, targets


def one_rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    images, targets = make_batch()
    rows = slice(2 * rank, 2 * rank + 2)
    for way in WAYS:
        model = make_model(way)
        chosen = model.mixture(images[rows])[1].indices.unique().tolist()
        assert chosen == [[0, 1], [2, 3]][rank]  # half of the experts are idle on each rank
        wrapped = CODDistributedDataParallel(model, device_ids=[0])
        result = gradients(wrapped, images[rows], targets[rows])
        torch.save(result, os.path.join(folder, f"{way}{rank}.pth"))
    leave_cpu_process_group()


def test_gradients_of_two_ranks_are_those_of_the_whole_batch(tmp_path):
    ranks(one_rank, free_port(), str(tmp_path))
    images, targets = make_batch()
    for way in WAYS:
        expected = gradients(make_model(way), images, targets)
        for rank in (0, 1):
            result = torch.load(tmp_path / f"{way}{rank}.pth")
            for name, value in expected.items():
                scale = value.abs().max().clamp(min=1e-6)
                difference = (result[name] - value).abs().max() / scale
                assert difference < 1e-5, (way, rank, name)
        learnt = [name for name, value in expected.items() if value.any()]
        for part in ("backbone", "router", *(f"experts.{name}" for name in EXPERTS)):
            assert any(name.startswith(part) for name in learnt), part


def test_launchers_that_need_something_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"'slurm' needs GPUs"):
        init_cpu_process_group("slurm")
    with pytest.raises(ValueError, match=r"codmoe train CONFIG --gpus N"):
        init_cpu_process_group("pytorch")
    init_cpu_process_group("none")
    assert not dist.is_initialized()


def test_too_few_gpus_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match=r"--gpus=2, but this machine has 1 GPU\(s\); use --gpus=1"
    ):
        init_cpu_process_group("pytorch")


TWO_EACH = dict(train_dataloader=dict(batch_size=2), val_dataloader=dict(batch_size=2))


def last_rate(steps):
    """Share of the learning rate in the last of ``steps`` steps, long after the warm-up."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (steps - 1) / steps)) / 2


def assert_went_on(work_dir, steps, adam_steps):
    """Two epochs are done, in ``steps`` steps as this run counts them, and none was done twice."""
    finished = json.loads((work_dir / "finished.json").read_text())
    assert (finished["epochs"], finished["iterations"]) == (2, steps)
    checkpoint = torch.load(work_dir / "epoch_2.pth", weights_only=False)
    optimizer = checkpoint["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {adam_steps}
    rates = [group["lr"] / group["initial_lr"] for group in optimizer["param_groups"]]
    # The cosine goes on from a warm-up of other steps, which is not the same to the last digit.
    assert rates == pytest.approx([last_rate(steps)] * len(rates), rel=0.01)
    # The best file is this run's own, not a second one beside that of the first process(es).
    (best,) = (work_dir.parent / "weights").iterdir()
    meta = torch.load(best, weights_only=True)["meta"]
    assert (meta["score"], meta["epoch"]) == (finished["best"], finished["best_epoch"])
    return finished


def test_two_processes_train_and_one_goes_on(tmp_path, monkeypatch):
    stopped = write_config(tmp_path, 1, ONE_EXPERT, TWO_EACH, STOP, epochs=2)
    work_dir = tmp_path / "work"
    done = bash("dist_train.sh", stopped, 2, "--work-dir", work_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    log = log_of(work_dir)
    assert "2 × CPU" in log and "epoch 1/2  validation" in log
    finished = json.loads((work_dir / "finished.json").read_text())
    assert finished["iterations"] == 2  # 8 images, 2 processes, 2 images each
    path = tmp_path / "weights" / "experts_joint_best.pth"
    build(stopped).load_state_dict(weights(path))
    assert torch.load(path, weights_only=True)["meta"]["score"] == finished["best"]
    # Once each, not once a process.
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    assert sorted(p.name for p in work_dir.glob("*.pth")) == ["epoch_1.pth"]

    left = read_weights(work_dir / "epoch_1.pth")
    seen, first = [], {}
    real = TrainingProgressHook.before_train_iter

    def before(self, runner, *args, **kwargs):
        real(self, runner, *args, **kwargs)
        seen.append(runner.model.run_state.progress)
        if not first:
            first.update({k: v.clone() for k, v in runner.model.state_dict().items()})

    monkeypatch.setattr(TrainingProgressHook, "before_train_iter", before)
    config = write_config(tmp_path, 1, ONE_EXPERT, TWO_EACH, epochs=2)
    train(prepared(config, work_dir, resume=True))
    assert seen == [0.5, 0.625, 0.75, 0.875]  # the second half, of four steps now
    assert first.keys() == left.keys() and all(torch.equal(first[k], left[k]) for k in left)
    assert "going on from epoch 1, step 4" in log_of(work_dir)
    later = assert_went_on(work_dir, steps=8, adam_steps=2 + 4)
    assert later["best"] >= finished["best"]


def test_one_process_trains_and_two_go_on(tmp_path):
    stopped = write_config(tmp_path, 1, ONE_EXPERT, TWO_EACH, STOP, epochs=2)
    work_dir = tmp_path / "work"
    finished = train(prepared(stopped, work_dir)).message_hub.get_info("codmoe_best")
    config = write_config(tmp_path, 1, ONE_EXPERT, TWO_EACH, epochs=2)
    on_two_ranks("train", config, "--work-dir", work_dir, "--resume", cwd=tmp_path)
    assert "going on from epoch 1, step 2" in log_of(work_dir)
    assert assert_went_on(work_dir, steps=4, adam_steps=4 + 2)["best"] >= finished


def test_resuming_with_the_same_steps_changes_nothing(tmp_path):
    """One process with the batch of two: the checkpoint's own counts are right."""
    stopped = write_config(tmp_path, 1, ONE_EXPERT, STOP, epochs=2)
    train(prepared(stopped, tmp_path / "work"))
    config = write_config(tmp_path, 1, ONE_EXPERT, epochs=2)
    train(prepared(config, tmp_path / "work", resume=True))
    assert "going on from" not in log_of(tmp_path / "work")
    assert_went_on(tmp_path / "work", steps=4, adam_steps=4)


def test_two_processes_count_each_image_once(tmp_path, monkeypatch):
    # One image a batch: a sum over another batch may differ in its last bit, and the figures of
    # both runs are to be the same, not nearly the same.
    seven = dict(
        test_dataloader=dict(batch_size=1, dataset=dict(datasets=dict(Synthetic=dict(length=7))))
    )
    config = write_config(tmp_path, 3, TWO_EXPERTS, seven)
    torch.manual_seed(3)
    save_weights(tmp_path / "w.pth", build(config), {}, "run")
    monkeypatch.chdir(tmp_path)
    one = run_test(
        prepared(config, tmp_path / "one"),
        "w.pth",
        experts=True,
        out_dir="maps1",
        pictures="small1",
    )
    out = ("--experts", "--work-dir", "two", "--out", "maps2", "--grid", "grid.png")
    out += ("--pictures", "small2", "--cost")
    done = bash("dist_test.sh", config, "w.pth", 2, *out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "test.json").read_text())
    assert list(two["table"]) == ["Synthetic"]
    for source, row in two["table"]["Synthetic"].items():
        same = one["table"]["Synthetic"][source]
        assert row["n"] == same["n"] == 7
        assert list(row["images"]) == list(same["images"]) and len(row["images"]) == 7
        for stem, values in row["images"].items():
            assert values == same["images"][stem], (source, stem)
        measured = {k: v for k, v in row.items() if isinstance(v, float)}
        assert {"IoU", "Dice", "MAE", "Sm"} <= measured.keys()
        assert measured == pytest.approx({k: same[k] for k in measured}, rel=1e-12)
    assert two["routing"] == pytest.approx(one["routing"], rel=1e-6)
    assert two["routing_weights"] == one["routing_weights"]
    assert two["pictures"]["files"] == one["pictures"]["files"] and two["cost"]["sources"]
    for file in one["pictures"]["files"]["Synthetic"].values():
        assert (tmp_path / "small1" / file).read_bytes() == (
            tmp_path / "small2" / file
        ).read_bytes()
    # One map for each image: the eighth, which fills up the last batch, is not written twice.
    names = [sorted(p.name for p in (tmp_path / d).rglob("*.png")) for d in ("maps1", "maps2")]
    assert len(names[0]) == 7 and names[0] == names[1]
    assert [p.name for p in tmp_path.glob("grid*")] == ["grid.png"]
    assert not list(tmp_path.glob(".*"))  # what processes exchange is gone


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_parameter_gets_a_gradient_where_all_experts_run(tmp_path, stage):
    """So that find_unused_parameters may be off there."""
    config = load_config(write_config(tmp_path, stage))
    assert every_expert_runs(config.model)
    torch.manual_seed(0)
    model = build(config).train()
    targets = (torch.rand(2, 1, 64, 64) > 0.5).float()
    losses = model(torch.randn(2, 3, 64, 64), targets=targets, mode="loss")
    model.parse_losses(losses)[0].backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []


@pytest.mark.parametrize("option", [dict(find_unused_parameters=False), dict(static_graph=True)])
def test_ddp_is_not_told_that_sparse_experts_all_learn(tmp_path, option):
    sparse = dict(train_dispatch="sparse", train_top_k=None)
    config = write_config(tmp_path, 3, dict(init_from=None, model=sparse))
    cfg = prepared(config, tmp_path / "work")
    cfg.model_wrapper_cfg.update(option)
    settle(cfg)  # one process has no DDP
    cfg.launcher = "pytorch"
    with pytest.raises(ValueError, match=rf"model_wrapper_cfg.{next(iter(option))}=.*'dense'"):
        settle(cfg)
    cfg.model.train_dispatch = "dense"
    settle(cfg)


VIT = dict(_delete_=True, type="ViTPyramid", name="vit_tiny_patch16_224", image_size=64)
PRANET_ALONE = dict(sinet=None, ujsc=None, zoomnet=None)


@pytest.mark.parametrize(
    ("stage", "model", "idle"),
    [
        (3, dict(), ""),
        # Without its own loss.
        (3, dict(expert_loss_weight=0), "experts.ujsc.confidence"),
        # PraNet reads no stride 4, for which a plain ViT has layers of its own.
        (
            1,
            dict(backbone=VIT, experts=PRANET_ALONE, expert_execution="together"),
            "backbone.scales.0",
        ),
    ],
)
def test_what_gets_no_gradient_is_found_and_the_model_left_alone(tmp_path, stage, model, idle):
    built = build(load_config(write_config(tmp_path, stage, dict(init_from=None, model=model))))
    before = {key: value.clone() for key, value in built.state_dict().items()}
    state = torch.get_rng_state()
    found = idle_parameters(built)
    assert bool(found) == bool(idle) and (not idle or found[0].startswith(idle)), found
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in built.parameters())
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())


def test_a_model_that_refuses_small_images_is_searched(tmp_path):
    built = build(load_config(write_config(tmp_path, 3, dict(init_from=None))))
    told, wrapper = [], dict(find_unused_parameters=None)
    logger = SimpleNamespace(info=told.append)
    runner = SimpleNamespace(distributed=True, every_expert_runs=True, logger=logger)
    CODRunner._settle_search(runner, wrapper, built)
    assert wrapper == dict(find_unused_parameters=False) and not told
    built.backbone.forward = refuse
    wrapper["find_unused_parameters"] = None
    CODRunner._settle_search(runner, wrapper, built)
    assert wrapper == dict(find_unused_parameters=True) and "of 448 pixels alone" in told[0]


def refuse(images):
    raise AssertionError("images of 448 pixels alone")


@pytest.mark.parametrize("case", ["dense", "learned temperature, no loss on the mixture", "sparse"])
def test_two_processes_search_for_unused_parameters_where_there_are_some(tmp_path, case):
    two = dict(train_dataloader=dict(batch_size=2), val_dataloader=dict(batch_size=2))
    changes = {
        "dense": (1, TWO_EXPERTS),
        "sparse": (3, dict(init_from=None, model=dict(train_dispatch="sparse", train_top_k=None))),
    }
    tempered = dict(type="ProbabilityCombiner", learn_temperature=True)
    stage, change = changes.get(case, (1, {**TWO_EXPERTS, "model": dict(
        TWO_EXPERTS["model"], combiner=tempered)}))  # fmt: skip
    config = write_config(tmp_path, stage, change, two)
    on_two_ranks("train", config, "--work-dir", tmp_path / "work", cwd=tmp_path)
    searched = "DDP searches for unused parameters in each step: 1 have" in log_of(
        tmp_path / "work"
    )
    assert searched == case.startswith("learned")
    left = Config.fromfile(next((tmp_path / "work").glob("*/vis_data/config.py")))
    assert left.model_wrapper_cfg.find_unused_parameters is None

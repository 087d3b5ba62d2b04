"""Two processes on the CPU do what one does."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from miniature import ROOT, SIZE, TWO_EXPERTS, build, log_of, prepared, weights, write_config
from torch import nn

from codmoe.engine.checkpoints import save_weights
from codmoe.engine.ddp import CODDistributedDataParallel, init_cpu_process_group
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


def make_model(dispatch):
    torch.manual_seed(0)
    model = ModelLevelMoE(
        "pvt_v2_b0",
        experts=EXPERTS,
        router=dict(type="EvidenceRouter", width=8),
        mixture_loss=dict(type="StructureLoss"),
        expert_loss_weight=0.3,
        routing_losses=dict(
            balance=dict(type="LoadBalanceLoss", weight=1.0),
            z=dict(type="RouterZLoss", weight=0.1),
        ),
        train_dispatch=dispatch,
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
    try:
        images, targets = make_batch()
        rows = slice(2 * rank, 2 * rank + 2)
        for dispatch in ("sparse", "dense"):
            model = make_model(dispatch)
            chosen = model.mixture(images[rows])[1].indices.unique().tolist()
            assert chosen == [[0, 1], [2, 3]][rank]  # half of the experts are idle on each rank
            wrapped = CODDistributedDataParallel(model, device_ids=[0])
            result = gradients(wrapped, images[rows], targets[rows])
            torch.save(result, os.path.join(folder, f"{dispatch}{rank}.pth"))
    finally:
        dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_gradients_of_two_ranks_are_those_of_the_whole_batch(tmp_path):
    mp.spawn(one_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    images, targets = make_batch()
    for dispatch in ("sparse", "dense"):
        expected = gradients(make_model(dispatch), images, targets)
        for rank in (0, 1):
            result = torch.load(tmp_path / f"{dispatch}{rank}.pth")
            for name, value in expected.items():
                scale = value.abs().max().clamp(min=1e-6)
                difference = (result[name] - value).abs().max() / scale
                assert difference < 1e-5, (dispatch, rank, name)
        learnt = [name for name, value in expected.items() if value.any()]
        for part in ("backbone", "router", *(f"experts.{name}" for name in EXPERTS)):
            assert any(name.startswith(part) for name in learnt), part


def test_launchers_that_need_something_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"'slurm' needs GPUs"):
        init_cpu_process_group("slurm")
    with pytest.raises(ValueError, match=r"dist_train.sh"):
        init_cpu_process_group("pytorch")
    init_cpu_process_group("none")
    assert not dist.is_initialized()


def bash(script, *arguments, cwd):
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHON=sys.executable)
    command = ["bash", str(ROOT / "tools" / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)


def test_two_processes_train_and_leave_the_weights(tmp_path):
    loader = dict(train_dataloader=dict(batch_size=2), val_dataloader=dict(batch_size=2))
    config = write_config(tmp_path, 1, TWO_EXPERTS, loader)
    work_dir = tmp_path / "work"
    done = bash("dist_train.sh", config, 2, "--work-dir", work_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    log = log_of(work_dir)
    assert "2 × CPU" in log and "Epoch(val) [1]" in log
    finished = json.loads((work_dir / "finished.json").read_text())
    assert finished["iterations"] == 2  # 8 images, 2 processes, 2 images each
    path = tmp_path / "weights" / "experts_joint_best.pth"
    build(config).load_state_dict(weights(path))
    assert torch.load(path, weights_only=True)["meta"]["score"] == finished["best"]
    # Once each, not once a process.
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    assert sorted(p.name for p in work_dir.glob("*.pth")) == ["epoch_1.pth"]


def test_two_processes_count_each_image_once(tmp_path, monkeypatch):
    seven = dict(
        test_dataloader=dict(batch_size=2, dataset=dict(datasets=dict(Synthetic=dict(length=7))))
    )
    config = write_config(tmp_path, 3, TWO_EXPERTS, seven)
    torch.manual_seed(3)
    save_weights(tmp_path / "w.pth", build(config), {}, "run")
    monkeypatch.chdir(tmp_path)
    one = run_test(prepared(config, tmp_path / "one"), "w.pth", experts=True, out_dir="maps1")
    out = ("--experts", "--work-dir", "two", "--out", "maps2", "--grid", "grid.png")
    done = bash("dist_test.sh", config, "w.pth", 2, *out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "test.json").read_text())
    assert list(two["table"]) == ["Synthetic"]
    for source, row in two["table"]["Synthetic"].items():
        same = one["table"]["Synthetic"][source]
        assert row["n"] == same["n"] == 7
        assert list(row["images"]) == list(same["images"]) and len(row["images"]) == 7
        for stem, values in row["images"].items():
            assert values == pytest.approx(same["images"][stem], abs=2e-3), (source, stem)
        for metric in ("IoU", "Dice", "MAE", "Sm"):
            assert row[metric] == pytest.approx(same[metric], abs=1e-3)
    assert two["routing"] == pytest.approx(one["routing"], abs=1e-3)
    # One map for each image: the eighth, which fills up the last batch, is not written twice.
    names = [sorted(p.name for p in (tmp_path / d).rglob("*.png")) for d in ("maps1", "maps2")]
    assert len(names[0]) == 7 and names[0] == names[1]
    assert [p.name for p in tmp_path.glob("grid*")] == ["grid.png"]

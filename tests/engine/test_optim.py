"""Merged parameter groups train as one group a parameter does; fused steps where there is a GPU."""

import os

import pytest
import torch
import torch.distributed as dist
from miniature import ONE_EXPERT, free_port, prepared, ranks, write_config

from codmoe.engine.config import load_config
from codmoe.engine.ddp import CODDistributedDataParallel, leave_cpu_process_group
from codmoe.engine.launch import train
from codmoe.engine.optim import (
    CODOptimWrapper,
    MergedGroupsConstructor,
    lay_out_state,
    settle_amp,
    settle_fused,
)

PLAIN = {"optim_wrapper.constructor": "DefaultOptimWrapperConstructor"}


def test_merged_groups_give_the_same_weights(tmp_path):
    # Rates and decays that differ: of the backbone, of norms and biases, of the rest. Not Adam: it
    # makes a full step of a gradient that is nothing but rounding.
    rates = dict(
        optim_wrapper=dict(
            optimizer=dict(_delete_=True, type="SGD", lr=1e-3, weight_decay=0.05),
            # With a decay of its own: what has none, mmengine's constructor would decay whole.
            paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=0.1, decay_mult=1.0)}),
        )
    )
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config = write_config(tmp_path, 1, ONE_EXPERT, rates, off, dict(randomness=dict(seed=3)))
    plain = train(prepared(config, tmp_path / "plain", **PLAIN))
    merged = train(prepared(config, tmp_path / "merged"))
    many, few = plain.optim_wrapper.param_groups, merged.optim_wrapper.param_groups
    settings = {(g["initial_lr"], g["weight_decay"]) for g in many}
    assert len(many) > 100 and len(settings) > 2
    assert {(g["initial_lr"], g["weight_decay"]) for g in few} == settings
    assert len(few) <= len(settings) + 1
    assert sum(len(g["params"]) for g in few) == len(many)
    for (name, one), other in zip(
        plain.model.named_parameters(), merged.model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=name)


def test_a_checkpoint_from_before_groups_were_merged_says_how_it_is_resumed(tmp_path):
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config = write_config(tmp_path, 1, ONE_EXPERT, off)
    train(prepared(config, tmp_path / "work", **PLAIN))
    longer = {"resume": True, "train_cfg.max_epochs": 2}
    with pytest.raises(ValueError, match=r"optim_wrapper.constructor=DefaultOptimWrapperConstr"):
        train(prepared(config, tmp_path / "work", **longer))
    assert train(prepared(config, tmp_path / "work", **longer, **PLAIN)).epoch == 2


def test_fused_steps_are_the_machines_unless_the_config_says_otherwise(tmp_path, monkeypatch):
    config = write_config(tmp_path)

    def settled(**optimizer):
        cfg = load_config(config, {f"optim_wrapper.optimizer.{k}": v for k, v in optimizer.items()})
        settle_fused(cfg)
        return cfg.optim_wrapper.optimizer.get("fused")

    assert settled() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settled() is True
    assert settled(fused=False) is False
    assert settled(foreach=True) is None
    assert settled(type="Rprop", _delete_=True) is None


def test_resumed_state_is_laid_out_like_its_parameter():
    layer = torch.nn.Conv2d(4, 6, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    before = optimizer.state[layer.weight]["exp_avg"].clone()
    layer.to(memory_format=torch.channels_last)
    lay_out_state(optimizer)
    after = optimizer.state[layer.weight]["exp_avg"]
    assert after.stride() == layer.weight.stride() != before.stride()
    assert torch.equal(after, before) and optimizer.state[layer.weight]["step"] == 1


def test_the_count_of_steps_stays_where_the_optimiser_wants_it():
    """A parameter that is one number (learn_temperature) has the shape of its count."""
    parameter = torch.nn.Parameter(torch.zeros((), device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    optimizer.state[parameter]["step"] = torch.tensor(3.0)
    lay_out_state(optimizer)
    assert optimizer.state[parameter]["step"] == 3


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


class Tower(torch.nn.Module):
    """A transformer's kinds of parameters, where the pretrained part of a backbone has them."""

    def __init__(self):
        super().__init__()
        body = torch.nn.Module()
        body.pos_embed = torch.nn.Parameter(torch.zeros(1, 4, 8))
        body.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 8))
        body.norm = torch.nn.LayerNorm(8)
        body.linear = torch.nn.Linear(8, 8)
        body.gamma = torch.nn.Parameter(torch.ones(8))
        self.backbone = torch.nn.ModuleDict(dict(body=body))
        self.head = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))


@pytest.mark.parametrize("own", [None, 0.5])
def test_norms_biases_and_embeddings_do_not_decay(own):
    model = Tower()
    key = dict(lr_mult=0.05) if own is None else dict(lr_mult=0.05, decay_mult=own)
    constructor = MergedGroupsConstructor(
        dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1)),
        dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={"backbone.body": key}),
    )
    groups = constructor(model).param_groups
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in groups
        for name, parameter in model.named_parameters()
        if any(parameter is p for p in group["params"])
    }
    spared = 0.0 if own is None else 0.1 * own
    body = "backbone.body."
    assert found == {
        body + "pos_embed": (0.05, spared),
        body + "cls_token": (0.05, spared),
        body + "gamma": (0.05, spared),
        body + "norm.weight": (0.05, spared),
        body + "norm.bias": (0.05, spared),
        body + "linear.weight": (0.05, 0.1 if own is None else 0.1 * own),
        body + "linear.bias": (0.05, spared),
        "head.0.weight": (1.0, 0.1),
        "head.0.bias": (1.0, 0.0),
        "head.1.weight": (1.0, 0.0),
        "head.1.bias": (1.0, 0.0),
    }


def accumulated(model, batches, begin=0):
    """Trains on batches of which two make a step and five an epoch; whether gradients waited."""
    bare = getattr(model, "module", model)
    wrapper = CODOptimWrapper(torch.optim.SGD(bare.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.epoch_steps = 5
    wrapper.initialize_count_status(bare, begin, 10)
    waited = []
    for batch in batches:
        with wrapper.optim_context(model):
            loss = model(batch).square().mean()
        wrapper.update_params(loss)
        waited.append(wrapper.is_waiting())
    return waited


def a_line():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1), torch.randn(10, 4, 3)


def expected(model, batches):
    """The same with the mean gradient over groups of 2, 2 and 1 batches in each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in batches.split(5):
        for group in epoch.split(2):
            optimizer.zero_grad()
            model(group.flatten(0, 1)).square().mean().backward()
            optimizer.step()
    return model.weight


@pytest.mark.parametrize("begin", [0, 5])
def test_an_epochs_last_batches_are_a_group_of_their_own(begin):
    model, batches = a_line()
    waited = accumulated(model, batches[begin:], begin)
    assert waited == [True, False, True, False, False] * (len(batches[begin:]) // 5)
    torch.testing.assert_close(model.weight, expected(a_line()[0], batches[begin:]))


def accumulate_on_rank(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, batches = a_line()
    model = CODDistributedDataParallel(model)
    accumulated(model, batches[:, 2 * rank : 2 * rank + 2])
    torch.save(model.module.weight.detach(), f"{folder}/{rank}.pth")
    leave_cpu_process_group()


def test_two_processes_accumulate_as_one(tmp_path):
    ranks(accumulate_on_rank, free_port(), str(tmp_path))
    one = expected(*a_line()).detach()
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pth"), one)

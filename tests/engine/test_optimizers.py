"""Merged parameter groups train as one group a parameter does."""

import torch
from miniature import ONE_EXPERT, prepared, write_config

from codmoe.engine.launch import train


def test_merged_groups_give_the_same_weights(tmp_path):
    # Rates and decays that differ: of the backbone, of norms and biases, of the rest. Not Adam: it
    # makes a full step of a gradient that is nothing but rounding.
    rates = dict(
        optim_wrapper=dict(
            optimizer=dict(_delete_=True, type="SGD", lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(custom_keys={"backbone.body": dict(lr_mult=0.1)}),
        )
    )
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config = write_config(tmp_path, 1, ONE_EXPERT, rates, off, dict(randomness=dict(seed=3)))
    constructor = {"optim_wrapper.constructor": "MergedGroupsConstructor"}
    plain = train(prepared(config, tmp_path / "plain"))
    merged = train(prepared(config, tmp_path / "merged", **constructor))
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

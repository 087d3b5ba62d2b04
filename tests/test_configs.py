"""The shipped configs say what was asked for."""

from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from codmoe import create_model
from codmoe.engine.config import load_config
from codmoe.engine.sources import read_sources
from codmoe.shipped import list_configs

SEPARATE = ("pranet", "sinet", "ujsc", "zoomnet")
MAIN = {
    **{f"experts/{name}": (40, 3e-4, f"expert_{name}", ("experts",)) for name in SEPARATE},
    "experts/joint": (40, 3e-4, "experts_joint", ("experts",)),
    "router/stage2": (30, 2e-4, "router", ("router",)),
    "ensemble/stage3": (80, 5e-5, "ensemble", ("experts", "router")),
}
# Experts, router, what is frozen, and the file that the stage starts from.
PARTS = {
    **{f"experts/{name}": ((name,), "UniformRouter", set(), None) for name in SEPARATE},
    "experts/joint": (SEPARATE, "UniformRouter", set(), None),
    "router/stage2": (
        SEPARATE,
        "EvidenceRouter",
        {"backbone", "experts"},
        "experts_joint_best.pth",
    ),
    "ensemble/stage3": (SEPARATE, "EvidenceRouter", set(), "router_best.pth"),
}
built = set()


def data_sets(loader):
    dataset = loader.dataset
    return list(dataset.datasets.values()) if "datasets" in dataset else [dataset]


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_config_loads_and_builds(name):
    cfg = load_config(name)
    assert cfg.default_scope == "codmoe" and cfg.default_hooks.best.name
    model = repr(cfg.model)
    if model not in built:  # many configs are of one model
        create_model(name)
        built.add(model)


@pytest.mark.parametrize("name", MAIN)
def test_the_numbers(name):
    epochs, rate, weights, parts = MAIN[name]
    cfg = load_config(name)
    assert cfg.train_cfg.max_epochs == epochs and cfg.train_cfg.val_interval == 1
    assert cfg.optim_wrapper.optimizer.lr == rate
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys["backbone.body"].lr_mult == 0.1
    assert cfg.default_hooks.best.name == weights and cfg.checkpoint_dir == "checkpoints_moe"
    assert cfg.model.backbone.name == "pvt_v2_b2" and cfg.model.backbone.pretrained
    assert cfg.train_dataloader.batch_size == 12
    (train,) = data_sets(cfg.train_dataloader)
    assert train.type == "COD10K" and train.subset == "Train"
    assert Path(train.data_root).name == "COD10K-v3"
    assert tuple(train.split.use) == parts
    (val,), (test,) = data_sets(cfg.val_dataloader), data_sets(cfg.test_dataloader)
    assert tuple(val.split.use) == ("val",) and val.subset == "Train"
    assert test.subset == "Test" and not test.get("split")
    (warp,) = [t for t in train.pipeline if t.type == "RandomWarp"]
    assert tuple(warp.size) == (448, 448)
    for dataset in (val, test):
        (resize,) = [t for t in dataset.pipeline if t.type == "Resize"]
        assert tuple(resize.scale) == (448, 448)


@pytest.mark.parametrize("name", ["experts/joint", "router/stage2", "ensemble/stage3"])
def test_the_variant_on_the_papers_protocol(name):
    """As the stage it is named after, but for data, weights folder and the command before it."""
    plain, variant = load_config(name), load_config(f"{name}_cod")
    for key in ("model", "train_cfg", "optim_wrapper", "param_scheduler", "default_hooks"):
        assert plain[key] == variant[key], key
    train, val = variant.train_dataloader.dataset, variant.val_dataloader.dataset
    assert [(d.benchmark, d.part) for d in data_sets(variant.train_dataloader)] == [
        ("COD10K", "train"),
        ("CAMO", "train"),
    ]
    assert {d.part for d in data_sets(variant.val_dataloader)} == {"train"}
    assert tuple(train.split.use) == MAIN[name][3] and tuple(val.split.use) == ("val",)
    assert train.split.file == val.split.file == f"{variant.checkpoint_dir}/split.json"
    tests = data_sets(variant.test_dataloader)
    assert [d.benchmark for d in tests] == ["CHAMELEON", "CAMO", "COD10K", "NC4K"]
    assert {d.part for d in tests} == {"test"}
    assert not variant.test_dataloader.dataset.get("split")


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_each_stage(name):
    experts, router, frozen, source = PARTS[name]
    cfg, sources = load_config(name), read_sources(load_config(name))
    assert tuple(sorted(n for n, expert in cfg.model.experts.items() if expert)) == experts
    assert cfg.model.router.type == router and set(cfg.model.get("frozen") or ()) == frozen
    if source is None:
        assert sources is None and cfg.model.expert_loss_weight == 1
        return
    assert cfg.model.top_k == 2 and sources.file == Path("checkpoints_moe") / source
    assert {"backbone", "experts"} <= set(cfg.init_from.parts)
    assert ("router" in cfg.init_from.parts) == (name == "ensemble/stage3")


@pytest.mark.parametrize("policy", ["refit", "refit_one_backbone", "refit_soup"])
def test_stage_1b_trains_the_heads_alone(policy):
    cfg, sources = load_config(f"experts/{policy}"), read_sources(load_config(f"experts/{policy}"))
    assert tuple(cfg.model.frozen) == ("backbone",) and cfg.model.expert_loss_weight == 1
    assert cfg.model.router.type == "UniformRouter" and cfg.model.evaluate_all_experts
    assert cfg.train_cfg.max_epochs == 10 and tuple(sorted(cfg.model.experts)) == SEPARATE
    folder = Path("checkpoints_moe")
    if policy == "refit":
        assert sources.paths == [folder / "experts_joint_best.pth"]
        assert cfg.assembly.max_drop == 0.01
        return
    # Heads that do not fit yet are what this stage is for.
    assert cfg.assembly.max_drop is None
    assert sources.experts == {n: folder / f"expert_{n}_best.pth" for n in SEPARATE}
    own = [sources.experts["sinet"]]
    soup = list(sources.experts.values())
    assert list(sources.backbone) == (soup if policy == "refit_soup" else own)


@pytest.mark.parametrize("name", [n for n in list_configs() if n.startswith(("router", "ensem"))])
def test_stages_2_and_3_stop_for_an_expert_that_lost_a_point(name):
    assert load_config(name).assembly.max_drop == 0.01


@pytest.mark.parametrize("name", [name for name in list_configs() if "quickstart" not in name])
def test_commands_in_errors_name_configs_that_exist(name):
    command = (load_config(name).get("init_from") or {}).get("command", "")
    for word in command.split():
        if word.startswith("configs/"):
            load_config(word)


@pytest.mark.parametrize("name", MAIN)
def test_rates_of_the_parts(name):
    """The backbone's pretrained weights at a tenth, all else at the whole rate."""
    cfg = load_config(name)
    width = dict(channels=8)
    experts = {n: width for n, expert in cfg.model.experts.items() if expert}
    model = create_model(name, backbone=dict(name="pvt_v2_b0"), experts=experts)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    rates = {id(p): g["lr"] for g in wrapper.optimizer.param_groups for p in g["params"]}
    frozen = set(cfg.model.get("frozen") or ())
    assert frozen == {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    for key, parameter in model.named_parameters():
        if key.split(".")[0] not in frozen:
            share = 0.1 if key.startswith("backbone") else 1.0
            assert rates[id(parameter)] == pytest.approx(share * MAIN[name][1]), key

"""The weights that a stage starts from: read, averaged, put together, grown."""

import pytest
import torch
from miniature import (
    MINIATURES,
    SMALL_BODY,
    build,
    log_of,
    prepared,
    run_command,
    signal_at,
    write_config,
)
from toy_parts import ONE_BACKBONE, SOUP, toy_config

from codmoe import create_model
from codmoe.engine.checkpoints import read_weights, save_weights
from codmoe.engine.config import load_config
from codmoe.engine.launch import train
from codmoe.engine.sources import (
    Sources,
    average_weights,
    init_faults,
    load_sources,
    read_sources,
)
from codmoe.models import ModelLevelMoE


def test_the_average_is_exact(tmp_path):
    paths, states = [], []
    for i in range(3):
        path = tmp_path / f"{i}.pth"
        state = {"backbone.w": torch.randn(5, generator=torch.Generator().manual_seed(i))}
        state["backbone.same"] = torch.full((4,), 0.1)
        state["backbone.half"] = torch.full((2,), float(i), dtype=torch.bfloat16)
        state |= {"backbone.steps": torch.tensor(10 + i), "experts.x.w": torch.zeros(1)}
        torch.save(dict(state_dict=state), path)
        paths.append(path)
        states.append(state)
    mean = average_weights(paths)
    assert sorted(mean) == ["backbone.half", "backbone.same", "backbone.steps", "backbone.w"]
    expected = torch.stack([s["backbone.w"].double() for s in states]).mean(0).float()
    assert torch.equal(mean["backbone.w"], expected)
    assert torch.equal(mean["backbone.same"], states[0]["backbone.same"])  # to the last bit
    assert mean["backbone.half"].tolist() == [1, 1]
    assert mean["backbone.half"].dtype == torch.float32  # not rounded again
    assert mean["backbone.steps"] == 10

    torch.save(dict(state_dict={**states[1], "backbone.w": torch.zeros(6)}), paths[1])
    with pytest.raises(ValueError, match=r"0\.pth and .*1\.pth cannot .* 1 keys .*backbone\.w;"):
        average_weights(paths)
    torch.save(dict(state_dict={"experts.x.w": torch.zeros(1)}), paths[2])
    with pytest.raises(ValueError, match=r"2\.pth holds no backbone"):
        average_weights([paths[0], paths[2]])


@pytest.mark.parametrize("name", ["small/finetune", "quickstart/stage1"])
def test_what_ships_is_found_from_any_folder_and_fits(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = load_sources(create_model(name), read_sources(load_config(name)))
    assert "small_ensemble.safetensors" in line


def test_buffers_travel_with_their_part(tmp_path, separate):
    content = torch.load(separate["pranet"], weights_only=True)
    content["state_dict"]["backbone.shift"].fill_(4)
    content["state_dict"]["backbone.steps"].fill_(9)
    torch.save(content, separate["pranet"])
    for changes, shift in ((ONE_BACKBONE, 0), (SOUP, 2)):
        config = toy_config(tmp_path, 2, changes)
        model = build(config)
        cfg = load_config(config)
        lines = load_sources(model, read_sources(cfg))
        assert model.backbone.shift.tolist() == [shift] * 8
        assert len(lines) == 3 and "tensors of expert pranet" in lines[1]


def test_files_that_are_missing_or_another_experts(tmp_path, separate):
    config = toy_config(tmp_path, 2, ONE_BACKBONE)
    cfg = prepared(config, tmp_path / "work")
    separate["pranet"].write_bytes(separate["sinet"].read_bytes())
    with pytest.raises(
        ValueError, match=r"init_from.experts.pranet=.* no expert 'pranet', but sin"
    ):
        train(cfg)
    for path in separate.values():
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        train(prepared(config, tmp_path / "other"))
    for word in (*map(str, separate.values()), "do not exist; make them with: make experts"):
        assert word in str(caught.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (dict(backbone="a.pth", experts=dict(sinet="a.pth")), "names no file for pranet; it has s"),
        (dict(file="a.pth", backbone="b.pth"), "file and backbone exclude each other.*_delete_"),
        (dict(backbone=dict(average=["a.pth"])), r"average.*two files or more"),
        (dict(backbone=dict(mean=["a.pth", "b.pth"])), r"give a file, or dict\(average"),
        (dict(backbone="a.pth", parts=("backbone",)), "parts belongs to file"),
        (dict(parts=("backbone",)), "names no weights"),
        (dict(backbone="a.pth", expert="b.pth"), "no key 'expert'.*'experts'"),
        (dict(experts="a.pth"), r"init_from.experts='a.pth': give dict"),
        (dict(file=dict(type="a")), r"init_from: file=.* is of the wrong type"),
        (dict(file="a.pth", parts="backbone"), r"init_from: parts='backbone' is of the wrong"),
        (dict(backbone="a.pth", experts=dict(sinet=5)), r"init_from.experts: sinet=5 is of the"),
        (dict(backbone=dict(average=["a.pth", 5])), "two files or more"),
    ],
)
def test_faults_of_the_config_are_told(tmp_path, init, words):
    config = toy_config(tmp_path, 2, dict(init_from=dict(init, _delete_=True)))
    with pytest.raises(ValueError, match=words):
        load_config(config)


def test_load_from_beside_it_is_refused(tmp_path, separate):
    cfg = prepared(toy_config(tmp_path, 2, ONE_BACKBONE), tmp_path / "work", load_from="x.pth")
    with pytest.raises(ValueError, match=r"load_from='x.pth' would replace what init_from loads"):
        train(cfg)


def mixture_of(*names, **settings):
    settings.setdefault("experts", {name: MINIATURES[name] for name in names})
    settings.setdefault("router", dict(type="EvidenceRouter", width=16, noise=0.0))
    return ModelLevelMoE(dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY), **settings)


@pytest.fixture
def small_mixture(tmp_path):
    """A mixture of sinet, pranet and zoomnet whose router tells images apart, and its file."""
    torch.manual_seed(0)
    model = mixture_of("sinet", "pranet", "zoomnet")
    torch.nn.init.normal_(model.router.fuse[-1].weight)
    torch.nn.init.normal_(model.router.fuse[-1].bias)
    path = tmp_path / "ensemble_best.pth"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.mark.parametrize("form", ["file", "files"])
def test_one_expert_begins_anew_beside_the_others(small_mixture, form):
    old, path = small_mixture
    experts = {name: MINIATURES[name] for name in ("sinet", "pranet")}
    experts["fpn"] = dict(type="FPNExpert", channels=8, own_blocks=2)
    torch.manual_seed(1)  # another backbone than that of the file
    new = mixture_of(experts=experts)
    began = {k: v.clone() for k, v in new.experts["fpn"].state_dict().items()}
    heads = dict(sinet=path, pranet=path, fpn=None)
    sources = dict(
        file=Sources(file=path, parts=("backbone", "experts.pranet", "experts.sinet")),
        files=Sources(backbone=(path,), experts=heads),
    )[form]
    assert load_sources(new, sources)[-1] == "begins anew: fpn"
    assert sources.paths == [path] and set(sources.expert_files(heads)) == {"sinet", "pranet"}
    kept = {k: v for k, v in old.state_dict().items() if not k.startswith(("router", "combiner"))}
    for key, value in kept.items():
        if "zoomnet" not in key:
            assert torch.equal(new.state_dict()[key], value), key
    # Blocks of its own are those of the backbone that was loaded, and its head as it was built.
    for key, value in old.backbone.ending(2).state_dict().items():
        assert torch.equal(new.experts["fpn"].backbone.state_dict()[key], value)
    for key, value in began.items():
        if not key.startswith("backbone."):
            assert torch.equal(new.experts["fpn"].state_dict()[key], value)


def test_an_expert_that_no_file_holds_is_told_with_the_way_on(small_mixture):
    _, path = small_mixture
    model = mixture_of("sinet", "pranet", "ujsc")
    with pytest.raises(ValueError, match="has no ujsc: a training begins that anew with") as told:
        load_sources(model, Sources(file=path, parts=("backbone", "experts")))
    parts = ("backbone", "experts.pranet", "experts.sinet")
    assert f"init_from.parts={parts}, or adds" in str(told.value)
    load_sources(model, Sources(file=path, parts=parts))
    with pytest.raises(ValueError, match=r"file for ujsc; .*, ujsc=None to begin it anew, or mod"):
        load_sources(model, Sources(experts=dict(sinet=path, pranet=path)))


def test_a_router_of_other_experts_is_told(small_mixture):
    """It has as many logits, and would give one expert's to another."""
    _, path = small_mixture
    parts = ("backbone", "experts.sinet", "experts.pranet", "router", "combiner")
    said = "chooses among pranet, sinet, zoomnet, and this model has pranet, sinet, ujsc; leave"
    with pytest.raises(ValueError, match=said):
        load_sources(mixture_of("sinet", "pranet", "ujsc"), Sources(file=path, parts=parts))


@pytest.mark.parametrize(("part", "meant"), [("backbon", "backbone"), ("experts.snet", "experts.")])
def test_a_part_that_there_is_not_is_told(small_mixture, part, meant):
    model, path = small_mixture
    with pytest.raises(ValueError, match=rf"init_from.parts=.* no part '{part}'; .*{meant}"):
        load_sources(model, Sources(file=path, parts=("backbone", part)))


def test_growing_leaves_alone_what_the_mixture_knows(small_mixture, tmp_path):
    old, path = small_mixture
    for name, buffer in old.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    torch.save(old.state_dict(), path)
    images, targets = torch.randn(8, 3, 64, 64), (torch.rand(8, 1, 64, 64) > 0.5).float()
    experts = {name: MINIATURES[name] for name in old.expert_names}
    newcomers = dict(aaa=dict(type="FPNExpert", channels=8, own_blocks=1), ujsc=MINIATURES["ujsc"])
    for count, (newcomer, config) in enumerate(newcomers.items(), 1):
        experts[newcomer] = config
        new = mixture_of(
            experts=experts,
            newcomers=tuple(newcomers)[:count],
            frozen=("backbone", *(f"experts.{name}" for name in old.expert_names)),
            mixture_loss=dict(type="StructureLoss"),
            routing_losses=dict(distill=dict(type="ExpertIoUDistillation")),
            expert_loss_weight=1.0,
            train_dispatch="dense",
            train_top_k="all",
        )
        (line,) = load_sources(new, Sources(file=path, grow=True))
        assert f"with room for {newcomer}" in line
        began = {k: v.clone() for k, v in new.state_dict().items()}
        assert_same_without(newcomer, old, new, images, chosen=0)

        new.train()
        learning = [p for p in new.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            new.parse_losses(new(images, targets=targets, mode="loss"))[0].backward()
            assert all(p.grad is None for p in new.parameters() if not p.requires_grad)
            optimizer.step()
        changed = {k for k, v in new.state_dict().items() if not torch.equal(v, began[k])}
        assert all(k.startswith((f"experts.{newcomer}.", "router.evidence.")) for k in changed)
        assert "router.evidence.fuse.2.bias" in changed
        assert any(k.startswith(f"experts.{newcomer}.") for k in changed)
        # As it may stand later: chosen for some of the images.
        last = new.router.evidence.fuse[-1]
        with torch.no_grad():
            torch.nn.init.normal_(last.weight, std=10)
            last.bias.zero_()
            last.bias -= new.eval().router.evidence(images, new.backbone(images)).logits.median()
        assert_same_without(newcomer, old, new, images)
        old, path = new, tmp_path / f"{newcomer}_best.pth"
        torch.save(new.state_dict(), path)


@torch.no_grad()
def assert_same_without(newcomer, old, new, images, chosen=None):
    """Old logits are the same, bit for bit, and so is all else of images without the newcomer."""
    (logits, was, _), (grown, now, _) = (
        model.eval().mixture(images, dense=True) for model in (old, new)
    )
    place = now.expert_names.index(newcomer)
    known = [i for i in range(len(now.expert_names)) if i != place]
    assert torch.equal(now.logits[:, known], was.logits)
    without = ~(now.indices == place).any(1)
    if chosen is None:
        assert 0 < without.sum() < len(images)
    else:
        assert (~without).sum() == chosen
    assert torch.equal(grown[without], logits[without])
    assert torch.equal(now.weights[without], was.weights[without])


def test_own_blocks_of_a_new_expert_begin_as_the_backbones(small_mixture):
    old, path = small_mixture
    experts = {name: MINIATURES[name] for name in old.expert_names}
    experts["fpn"] = dict(type="FPNExpert", channels=8, own_blocks=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # another backbone than that of the file
        new = mixture_of(experts=experts, newcomers=("fpn",))
    load_sources(new, Sources(file=path, grow=True))
    own, theirs = new.experts["fpn"].backbone, old.backbone.ending(2)
    for key, value in theirs.state_dict().items():
        assert torch.equal(own.state_dict()[key], value)


@pytest.mark.parametrize("router", ["StaticRouter", "UniformRouter"])
def test_any_router_grows(router, tmp_path):
    router = dict(type=router)
    old = mixture_of("sinet", "zoomnet", router=router)
    torch.save(old.state_dict(), tmp_path / "a.pth")
    new = mixture_of("sinet", "ujsc", "zoomnet", router=router, newcomers=("ujsc",))
    load_sources(new, Sources(file=tmp_path / "a.pth", grow=True))
    assert_same_without("ujsc", old, new, torch.randn(2, 3, 64, 64), chosen=0)


def test_a_grown_mixture_trains_by_command_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    two = dict(model=dict(experts=dict(ujsc=None, zoomnet=None)))
    knows = dict(model=dict(router=dict(fallback=2.0)))
    old = build(write_config(tmp_path, 3, two, knows, dict(init_from=None)))
    torch.nn.init.normal_(old.router.fuse[-1].weight)
    # What it knows is held, too, and the hook that would learn it does nothing.
    old.router.familiarity.edge.fill_(0.5)
    knows["default_hooks"] = dict(familiarity=dict(type="FamiliarityHook"))
    for name, buffer in old.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    before = tmp_path / "weights" / "ensemble_best.pth"
    save_weights(before, old, {}, "stage 3")
    fpn = dict(type="FPNExpert", channels=8, own_blocks=1, learns_from=["New"])
    part = dict(
        type="SyntheticCamouflage",
        image_size=64,
        length=8,
        pipeline=[dict(type="LoadCODPair"), dict(type="PackCODInputs")],
    )
    grown = dict(
        init_from=dict(_delete_=True, file="ensemble_best.pth", grow=True),
        model=dict(
            experts=dict(fpn=fpn, ujsc=None, zoomnet=None),
            frozen=["backbone", "experts.pranet", "experts.sinet"],
            newcomers=["fpn"],
        ),
        train_dataloader=dict(
            dataset=dict(
                _delete_=True,
                type="DatasetGroup",
                datasets=dict(Old=dict(part, part="router"), New=dict(part, part="experts")),
            )
        ),
        default_hooks=dict(best=dict(name="grown")),
    )
    stopped = write_config(tmp_path, 3, grown, knows, signal_at(5), epochs=2)  # of four steps each
    work = tmp_path / "work"
    assert run_command(monkeypatch, "train", stopped, "--work-dir", work) == 143
    assert [path.name for path in work.glob("interrupted_*.pth")] == ["interrupted_6.pth"]
    config = write_config(tmp_path, 3, grown, knows, epochs=2)
    assert not run_command(monkeypatch, "train", config, "--work-dir", work, "--resume")
    assert "with room for fpn" in log_of(work) and "in epoch 2 after 2 steps" in log_of(work)

    after = read_weights(work / "epoch_2.pth")
    kept = {k.replace("router.", "router.old."): v for k, v in read_weights(before).items()}
    assert any("running_mean" in key for key in kept) and any("backbone" in key for key in kept)
    for key, value in kept.items():
        assert torch.equal(after[key], value), key
    earlier = read_weights(work / "epoch_1.pth")
    moved = {k.split(".")[1] for k in after if not torch.equal(after[k], earlier[k])}
    assert {"fpn", "evidence"} <= moved
    assert not {"pranet", "sinet", "old"} & moved
    whole = tmp_path / "whole"
    assert not run_command(monkeypatch, "train", config, "--work-dir", whole)
    for key, value in read_weights(whole / "epoch_2.pth").items():
        torch.testing.assert_close(after[key], value, atol=1e-6, rtol=1e-5)


def test_a_mixture_that_cannot_grow_says_why(small_mixture):
    _, path = small_mixture
    grow = Sources(file=path, grow=True)
    with pytest.raises(ValueError, match=r"init_from.grow: .*no expert beyond them"):
        load_sources(mixture_of("sinet", "pranet", "zoomnet"), grow)
    with pytest.raises(ValueError, match=r"init_from.grow: .*lacks zoomnet"):
        load_sources(mixture_of("sinet", "pranet", "ujsc"), grow)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_sources(mixture_of("sinet", "pranet", "zoomnet", "ujsc"), Sources(file=path))
    four = ("sinet", "pranet", "zoomnet", "ujsc")
    for newcomers, last in (("zoomnet",), "zoomnet"), ((), None):
        with pytest.raises(ValueError, match=rf"this model has ujsc, .* end with {last}; grow by"):
            load_sources(mixture_of(*four, newcomers=newcomers), grow)
    config = dict(init_from=dict(file="a.pth", parts=["backbone"], grow=True))
    faults = init_faults(config)
    assert "one whole mixture" in faults[0] and "needs model.newcomers=('NAME',)" in faults[1]
    assert len(init_faults(config | dict(model=dict(newcomers=("ujsc",))))) == 1

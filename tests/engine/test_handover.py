"""The weights a stage starts from: read, averaged, put together, measured, and refused where they
do not fit each other.
"""

import json

import pytest
import torch
from miniature import (
    MINIATURES,
    SMALL_BODY,
    STOP,
    build,
    log_of,
    on_two_ranks,
    prepared,
    run_command,
    signal_at,
    weights,
    write_config,
)
from mmengine.config import Config
from torch.multiprocessing import ProcessRaisedException
from toy_parts import NAMES, ONE_BACKBONE, REFIT, SOUP, leave, leave_separate, toy_config

from codmoe import create_model
from codmoe.engine import handover
from codmoe.engine.checkpoints import read_weights, save_half, save_weights
from codmoe.engine.config import load_config
from codmoe.engine.handover import (
    Sources,
    average_weights,
    init_faults,
    load_sources,
    read_sources,
    summary,
)
from codmoe.engine.hooks.mixture import table
from codmoe.engine.launch import train
from codmoe.models import ModelLevelMoE


@pytest.fixture
def separate(tmp_path):
    return leave_separate(tmp_path)


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


@pytest.fixture
def steps(monkeypatch):
    done = []
    real = ModelLevelMoE.loss

    def loss(self, *args):
        done.append(1)
        return real(self, *args)

    monkeypatch.setattr(ModelLevelMoE, "loss", loss)
    return done


def measured(work_dir):
    return json.loads((work_dir / "assembly.json").read_text())


def test_a_stale_head_stops_the_run_before_a_step(tmp_path, separate, steps):
    config, work_dir = toy_config(tmp_path, 2, ONE_BACKBONE), tmp_path / "work"
    with pytest.raises(ValueError) as caught:
        train(prepared(config, work_dir))
    assert steps == [] and not list(work_dir.glob("*.pth"))
    assert not (tmp_path / "weights" / "router_best.pth").exists()
    found = measured(work_dir)
    assert found["passed"] is False and found["policy"] == "one backbone"
    pranet, sinet = found["experts"]["pranet"], found["experts"]["sinet"]
    assert pranet["own"] > 0.05 and pranet["assembled"] == 0 and not pranet["passed"]
    assert pranet["drop"] == pranet["own"]
    assert sinet["own"] == sinet["assembled"] == pranet["own"] and sinet["passed"]
    assert sinet["measured_once"] and not pranet["measured_once"]
    said = str(caught.value)
    for word in (
        "expert 'pranet' has IoU",
        f"{pranet['own']:.4f} on its own checkpoint and 0.0000 in the assembled model",
        f"trained on the backbone of {separate['pranet']} (expert_pranet, configs/expert_pranet.py",
        "epoch 7, run expert_p",
        f"the backbone here is that of {separate['sinet']}",
        "experts_joint_best.pth",
        "configs/experts/refit_one_backbone.py",
        str(work_dir / "assembly.json"),
    ):
        assert word in said, word
    assert "expert 'sinet'" not in said
    log = log_of(work_dir)
    assert "differs: weights of backbone" in log and "bit-identical to its checkpoint" in log


def test_a_drop_within_the_limit_passes(tmp_path, separate, steps):
    config = toy_config(tmp_path, 2, ONE_BACKBONE, dict(assembly=dict(max_drop=1.0)))
    train(prepared(config, tmp_path / "work"))
    assert steps and measured(tmp_path / "work")["passed"]


def test_the_joint_run_passes_and_says_that_it_was_measured_once(tmp_path, steps):
    path = leave(tmp_path, "experts_joint", dict(sinet=1, pranet=1), backbone=1)
    train(prepared(toy_config(tmp_path, 2), tmp_path / "work"))
    found = measured(tmp_path / "work")
    assert steps and found["passed"] and found["policy"] == "one file"
    assert found["max_drop"] == 0.01 and found["images"] == 4 and found["backbone"] == [str(path)]
    assert list(found["experts"]) == sorted(NAMES)
    for expert in found["experts"].values():
        assert expert["own"] == expert["assembled"] > 0.05 and expert["drop"] == 0
        assert expert["measured_once"] and expert["checkpoint"] == str(path)
    # Measured on the validation set: the frozen experts have that IoU in each validation after.
    (file,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    validated = json.loads(file.read_text().splitlines()[-1])
    assert validated["IoU_sinet"] == pytest.approx(expert["assembled"], abs=1e-6)


def test_a_file_in_half_precision_is_the_model_it_is_read_into(tmp_path):
    path = leave(tmp_path, "experts_joint", dict(sinet=0.1, pranet=0.3), backbone=0.7)
    content = torch.load(path, weights_only=True)
    half = path.with_suffix(".safetensors")
    save_half(half, content["state_dict"], content["meta"])
    config = toy_config(tmp_path, 2, dict(init_from=dict(file=half.name)))
    train(prepared(config, tmp_path / "work"))
    assert all(e["measured_once"] for e in measured(tmp_path / "work")["experts"].values())


def test_heads_of_the_joint_run_without_its_backbone_are_caught(tmp_path, steps):
    leave(tmp_path, "experts_joint", dict(sinet=-1, pranet=-1), backbone=-1)
    config = toy_config(tmp_path, 2, dict(init_from=dict(parts=("experts",))))
    with pytest.raises(ValueError, match=r"'sinet'.*was not loaded(.|\n)*init_from.parts=\('backb"):
        train(prepared(config, tmp_path / "work"))
    assert steps == []


def test_a_head_that_is_configured_otherwise_is_caught(tmp_path, steps):
    leave(tmp_path, "experts_joint", dict(sinet=1, pranet=1), backbone=1)
    config = toy_config(tmp_path, 2, factor=-1.0)
    with pytest.raises(
        ValueError, match=r"'sinet'.*config of experts.sinet differs here"
    ) as caught:
        train(prepared(config, tmp_path / "work"))
    assert steps == [] and "refit" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "equal"),
    [(dict(ual_start=1.0, segmentation_loss="structure"), True), (dict(channels=8), False)],
)
def test_what_the_loss_alone_reads_makes_no_other_expert(change, equal):
    """Stage 3 goes on with ZoomNet's uncertainty loss, and has nothing to measure for that."""
    zoomnet = dict(type="ZoomNetExpert", channels=16)
    one, other = (
        Config(dict(model=dict(backbone="pvt_v2_b0", experts=dict(zoomnet=dict(zoomnet, **with_)))))
        for with_ in ({}, change)
    )
    assert (handover._sections(one, "zoomnet") == handover._sections(other, "zoomnet")) is equal


def test_measuring_changes_nothing_in_the_training(tmp_path):
    for name in ("with", "without"):
        folder = tmp_path / name
        folder.mkdir()
        leave(folder, "experts_joint", dict(sinet=1, pranet=1), backbone=1)
        off = dict(assembly=None) if name == "without" else {}
        torch.manual_seed(0)
        train(prepared(toy_config(folder, 2, off), folder / "work"))
    assert not (tmp_path / "without" / "work" / "assembly.json").exists()
    one, other = (
        weights(tmp_path / name / "weights" / "router_best.pth") for name in ("with", "without")
    )
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_separate_experts_are_refitted_on_one_backbone(tmp_path, separate, steps):
    """Stage 1b tells of the drop and goes on; what it leaves passes in stage 2 and 3."""
    changes = dict(optim_wrapper=dict(optimizer=dict(lr=0.5)), train_cfg=dict(max_epochs=4))
    config = toy_config(tmp_path, 1, ONE_BACKBONE, REFIT, changes)
    train(prepared(config, tmp_path / "refit"))
    assert measured(tmp_path / "refit")["experts"]["pranet"]["assembled"] == 0
    refitted = weights(tmp_path / "weights" / "experts_refit_best.pth")
    given = {name: weights(path) for name, path in separate.items()}
    assert torch.equal(refitted["backbone.gain"], given["sinet"]["backbone.gain"])
    key = "experts.pranet.weight"
    assert not torch.equal(refitted[key], given["pranet"][key])

    start = dict(init_from=dict(file="experts_refit_best.pth"))
    train(prepared(toy_config(tmp_path, 2, start), tmp_path / "stage2"))
    found = measured(tmp_path / "stage2")
    assert found["passed"]
    # What the refit made of the head, beside what it was in its own run.
    before = found["experts"]["pranet"]["before"]
    assert before["checkpoint"] == str(separate["pranet"]) and before["IoU"] > 0.05
    assert f"{before['IoU']:.4f} expert_pranet_best.pth" in log_of(tmp_path / "stage2")
    train(prepared(toy_config(tmp_path, 3), tmp_path / "stage3"))
    found = measured(tmp_path / "stage3")
    assert found["passed"] and set(found["experts"]) == set(NAMES)


def test_a_soup_is_the_mean_of_the_backbones(tmp_path, separate, steps):
    config = toy_config(tmp_path, 2, SOUP)
    with pytest.raises(ValueError) as caught:
        train(prepared(config, tmp_path / "work"))
    found = measured(tmp_path / "work")
    assert found["policy"] == "soup" and len(found["backbone"]) == 2 and steps == []
    # + and - average to nothing: neither head sees anything.
    assert all(not expert["passed"] for expert in found["experts"].values())
    for word in ("'pranet'", "'sinet'", "the average of", "configs/experts/refit_soup.py"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("assembly", "words"),
    [
        (dict(max_drp=0.1), "assembly.*max_drop"),
        (dict(max_drop="1%"), "is not a number"),
        (dict(max_drop=5), r"not a number in \[0, 1\]"),
        (False, "None to measure nothing"),
    ],
)
def test_faults_of_the_check_are_told(tmp_path, assembly, words):
    with pytest.raises(ValueError, match=words):
        load_config("router/stage2", dict(assembly=assembly))


def test_without_validation_data_it_is_told(tmp_path):
    leave(tmp_path, "experts_joint", dict(sinet=1, pranet=1), backbone=1)
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    with pytest.raises(ValueError, match=r"without validation data; .*assembly=None"):
        train(prepared(toy_config(tmp_path, 2, off), tmp_path / "work"))


def test_a_resumed_run_is_not_measured_again(tmp_path):
    leave(tmp_path, "experts_joint", dict(sinet=1, pranet=1), backbone=1)
    imports = dict(custom_imports=dict(imports=["toy_parts", "miniature"]))
    hooks = dict(custom_hooks=STOP["custom_hooks"])
    config = toy_config(tmp_path, 2, imports, hooks, dict(train_cfg=dict(max_epochs=2)))
    train(prepared(config, tmp_path / "work"))
    (tmp_path / "work" / "assembly.json").unlink()
    train(prepared(config, tmp_path / "work", resume=True))
    assert not (tmp_path / "work" / "assembly.json").exists()


def test_weights_that_hold_no_config_are_measured_as_this_stage_is(tmp_path, separate):
    content = torch.load(separate["pranet"], weights_only=True)
    torch.save(dict(state_dict=content["state_dict"]), separate["pranet"])
    with pytest.raises(ValueError, match=rf"backbone of {separate['pranet']}, and the"):
        train(prepared(toy_config(tmp_path, 2, ONE_BACKBONE), tmp_path / "work"))
    assert measured(tmp_path / "work")["experts"]["pranet"]["own"] > 0.05


def test_two_processes_measure_what_one_does(tmp_path, separate):
    config = toy_config(tmp_path, 2, ONE_BACKBONE, dict(val_dataloader=dict(batch_size=1)))
    with pytest.raises(ProcessRaisedException, match="expert 'pranet' has IoU"):
        on_two_ranks("train", config, "--work-dir", tmp_path / "two", cwd=tmp_path)
    with pytest.raises(ValueError):
        train(prepared(config, tmp_path / "one"))
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert two["experts"] == one["experts"] and two["images"] == 4
    assert log_of(tmp_path / "two").count("IoU of the experts before the first step") == 1


def test_figures_by_hand():
    # IoU of a, b, their mean and the mixture; IoU of both masks, correlation of wrong pixels.
    rows = [
        [0.2, 0.6, 0.3, 0.5, 0.1, 0],
        [0.4, 0.4, 0.3, 0.5, 0.3, -1],
        [0.6, 0.2, 0.3, 0.5, 0.2, 0.4],
    ]
    found = summary(rows, ("a", "b"))
    assert found["images"] == 3
    assert found["IoU"] == pytest.approx(
        dict(a=0.4, b=0.4, uniform=0.3, mixture=0.5, oracle=1.6 / 3)
    )
    assert found["diversity"] == pytest.approx(
        dict(pairwise_iou=0.2, error_correlation=-0.2, disagreement_over_error=0.8 / 0.6)
    )
    assert found["pairs"]["pairwise_iou"] == pytest.approx({"a-b": 0.2})
    same = summary([[0.5, 0.5, 0.3, 0.5, 1, 0]], ("a", "b"))
    assert same["diversity"]["disagreement_over_error"] == 0
    lines = "\n".join(table(found, same))
    assert "IoU a                    0.4000  0.5000  +0.1000" in lines
    assert "error correlation        -0.2000  0.0000  +0.2000" in lines
    assert "at most 2, where errors share nothing" in lines
    assert "+" not in "\n".join(table(None, same))


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

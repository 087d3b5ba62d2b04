"""The experts that a stage starts with: measured, and refused where they do not fit each other."""

import json

import pytest
import torch
from miniature import STOP, log_of, on_two_ranks, prepared, weights
from mmengine.config import Config
from torch.multiprocessing import ProcessRaisedException
from toy_parts import NAMES, ONE_BACKBONE, REFIT, SOUP, leave, toy_config

from codmoe.engine import handover
from codmoe.engine.checkpoints import packed
from codmoe.engine.config import load_config
from codmoe.engine.handover import summary
from codmoe.engine.hooks.mixture import table
from codmoe.engine.launch import train
from codmoe.models import ModelLevelMoE


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


def test_an_expert_that_begins_anew_is_not_measured_and_the_others_are(tmp_path):
    path = leave(tmp_path, "experts_joint", dict(sinet=1, pranet=1), backbone=1)
    anew = dict(
        init_from=dict(file=path.name, parts=("backbone", "experts.sinet")),
        model=dict(frozen=("backbone", "experts.sinet")),
        default_hooks=dict(best=dict(name="replaced")),
    )
    config = toy_config(tmp_path, 1, anew, experts=("sinet", "mine"))
    train(prepared(config, tmp_path / "work"))
    assert list(measured(tmp_path / "work")["experts"]) == ["sinet"]
    assert "begins anew: mine" in log_of(tmp_path / "work")
    before, after = weights(path), weights(tmp_path / "weights" / "replaced_best.pth")
    kept = [key for key in after if not key.startswith("experts.mine")]
    assert "experts.sinet.weight" in kept
    assert all(torch.equal(after[key], before[key]) for key in kept if key in before)
    assert not torch.equal(after["experts.mine.weight"], torch.ones(8))


def test_a_file_in_half_precision_is_the_model_it_is_read_into(tmp_path):
    path = leave(tmp_path, "experts_joint", dict(sinet=0.1, pranet=0.3), backbone=0.7)
    content = torch.load(path, weights_only=True)
    half = path.with_suffix(".safetensors")
    half.write_bytes(packed(content["state_dict"], content["meta"]))
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

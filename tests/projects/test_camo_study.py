"""The rows of the CAMO study load, belong together, and their measures are what they say."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codmoe import create_model
from codmoe.engine.config import load_config
from projects.camo_study import measure, pack, run

ROWS = sorted(path.stem for path in measure.CONFIGS.glob("*.py"))


@pytest.fixture(scope="module")
def configs():
    """``{row: config}``, read once."""
    return {row: load_config(measure.CONFIGS / f"{row}.py") for row in ROWS}


def test_no_row_sees_fewer_images_than_another_and_none_the_validation(configs):
    for row, cfg in configs.items():
        split = cfg.train_dataloader.dataset.split
        assert split.fractions == dict(experts=0.95, val=0.05) and split.use == ("experts",)
        assert cfg.val_dataloader.dataset.split.use == ("val",)
        assert ("folds" in split) == ("fold" in row)
        assert cfg.train_dataloader.batch_size == 12


def test_own_blocks_are_all_that_two_rows_differ_in(configs):
    own, shared = (configs[row].model for row in ("own_joint", "own_shared"))
    for name, expert in own.experts.items():
        assert expert.get("own_blocks", 0) == (0 if name == "fpn" else 6)
        assert not shared.experts[name].get("own_blocks")
        rest = {k: v for k, v in expert.items() if k != "own_blocks"}
        assert rest == {k: v for k, v in shared.experts[name].items() if k != "own_blocks"}
    assert own.backbone == shared.backbone == configs["own_router"].model.backbone


def test_experts_that_are_trained_apart_fit_together(configs):
    router = configs["apart_router"]
    assert router.init_from.backbone == router.init_from.experts.fpn
    names = list(router.model.experts)
    assert names == list(run.EXPERTS) == list(router.init_from.experts)
    for name in names:
        alone = configs[f"apart_{name}"]
        assert alone.model.experts == {name: router.model.experts[name]}
        assert alone.model.backbone == router.model.backbone
    # What the experts share is what fpn's training holds, to the last tensor.
    backbone = dict(router.model.backbone, checkpoint=None)
    body = create_model(str(measure.CONFIGS / "apart_fpn.py"), backbone=backbone).backbone
    keys = configs["apart_fpn"].optim_wrapper.paramwise_cfg.custom_keys
    held = tuple(name for name, mult in keys.items() if mult.lr_mult == 0)
    ending = {id(p) for p in body.ending(10).parameters()}
    shared = {n for n, p in body.named_parameters("backbone") if id(p) not in ending}
    assert shared == {n for n, _ in body.named_parameters("backbone") if n.startswith(held)}


def test_folds_are_tested_on_what_they_have_not_seen(configs):
    for fold in (0, 1):
        cfg = configs[f"fold{fold}"]
        tested = cfg.test_dataloader.dataset.datasets.CAMO
        assert tested.split_dir == "train" and tested.split.use == ("router",)
        assert tested.split.fold == cfg.train_dataloader.dataset.split.fold == fold
        assert tested.split.folds == cfg.train_dataloader.dataset.split.folds == 2
        assert cfg.model.experts.keys() == configs["router"].model.experts.keys()


def test_stages_hand_over_and_the_pretrained_part_learns_slowly(configs):
    assert configs["router"].init_from.file == "experts_joint_best.pth"
    assert configs["stage3"].init_from.file == "router_best.pth"
    for row, before in run.BEFORE.items():
        args = SimpleNamespace(compile=False, options=[])
        made = [run.weights(each, 0).name for each in before]
        init = configs[row].init_from
        assert made == ([init.file] if init.get("file") else list(init.experts.values()))
        needs = [path.name for path in run.jobs_of(row, 0, args)[0].needs]
        truth = configs[row].model.get("router_truth", dict(files=()))["files"]
        waited_for = [Path(file).name for file in truth if file.startswith("results/")]
        assert needs == [*waited_for, *made]
    for row in ROWS:
        assert configs[row].default_hooks.best.name in run.weights(row, 0).name
    for cfg in (configs[row] for row in ROWS if not row.startswith("held")):
        rate = cfg.optim_wrapper.optimizer.lr
        mult = cfg.optim_wrapper.paramwise_cfg.custom_keys["backbone.body"].lr_mult
        assert rate * mult <= 2e-5 * (1 + 1e-9)


def test_experts_read_the_scales_that_the_page_names():
    backbone = dict(_delete_=True, type="TimmPyramid", name="pvt_v2_b0")
    model = create_model(str(measure.CONFIGS / "joint.py"), backbone=backbone)
    side = 560
    read = {
        name: [round(side * scale) for scale in expert.input_scales]
        for name, expert in model.experts.items()
    }
    assert read == dict(fpn=[560], pranet=[672], sinet=[448], ujsc=[560], zoomnet=[224, 448, 672])


def test_disagreement_and_correlation_by_hand():
    truth = torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8)
    maps = dict(
        a=dict(x=torch.tensor([[255, 0, 0, 0]], dtype=torch.uint8)),
        b=dict(x=torch.tensor([[255, 255, 255, 0]], dtype=torch.uint8)),
    )
    pairs = measure.alike(maps, dict(x=truth), ["a", "b"], "cpu")
    assert pairs["a+b"]["mask_iou"] == pytest.approx(1 / 3)
    # Each is wrong in one pixel of four, another one: −1/3.
    assert pairs["a+b"]["error_correlation"] == pytest.approx(-1 / 3)
    table = {
        source: measure.score(source, maps, dict(x=truth), "cpu", full=False) for source in "ab"
    }
    group = measure.summary(table, pairs, ["a", "b"])
    mean = (1 / 2 + 2 / 3) / 2
    assert group["disagreement_over_error"] == pytest.approx((2 / 3) / (1 - mean))
    assert group["oracle"] == pytest.approx(2 / 3)


def test_a_mean_of_maps_is_scored_as_one():
    maps = dict(
        a=dict(x=torch.tensor([[255, 0]], dtype=torch.uint8)),
        b=dict(x=torch.tensor([[255, 100]], dtype=torch.uint8)),
    )
    truth = torch.tensor([[1, 0]], dtype=torch.uint8)
    assert measure.score("a+b", maps, dict(x=truth), "cpu", full=False)["IoU"] == 1


def test_packed_results_keep_what_intervals_need():
    image = dict(IoU=0.123456789, Sm=0.5, meanEm=0.4)
    row = dict(IoU=0.5, Sm=0.5, images=dict(x=image), curves=[1, 2])
    single = dict(IoU=0.25, images=dict(x=dict(IoU=0.25)))
    result = dict(
        checkpoint="a.pth",
        attributes={},
        table=dict(CAMO={"mixture": row, "a/m": single, "a/m+b/m": single}),
    )
    kept = pack.packed(result, pack.METRICS)
    mixture = dict(IoU=0.5, Sm=0.5, images=dict(x=dict(IoU=0.12346, Sm=0.5)))
    assert kept["table"]["CAMO"] == {"mixture": mixture, "a/m": single}
    assert kept["means"] == {"a/m+b/m": 0.25} and "attributes" not in kept


def test_the_results_hold_no_more_than_numbers_of_all_test_images():
    folder = measure.CONFIGS.parent / "results"
    files = list(folder.glob("*.json"))
    assert files and sum(file.stat().st_size for file in files) < 4e6
    for name in ("plain_728", "joint", "router", "stage3"):
        row = json.loads((folder / f"{name}.json").read_text())["table"]["CAMO"]["mixture"]
        assert len(row["images"]) == 248
        mean = sum(image["IoU"] for image in row["images"].values()) / 248
        assert mean == pytest.approx(row["IoU"], abs=1e-5)

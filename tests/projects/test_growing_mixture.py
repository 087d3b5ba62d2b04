"""The growing mixture: rows belong together, tables say what results hold, parts come back."""

import json

import cv2
import numpy as np
import pytest
import torch

from codmoe.datasets.splits import DEFAULTS, split_indices
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.config import dicts_in, load_config
from codmoe.models import ModelLevelMoE
from projects.growing_mixture import miniature, run, tables


@pytest.fixture(scope="module")
def configs():
    return {row: load_config(run.CONFIGS / f"{row}.py") for row in run.ROWS}


def images_of(loader):
    """``{(domain, part)}`` that a loader reads."""
    return {
        (name, part) for name, one in loader.dataset.datasets.items() for part in one.split["use"]
    }


def test_the_router_learns_what_old_experts_have_not_and_nobody_the_validation(configs):
    for cfg in configs.values():
        assert {part for _, part in images_of(cfg.train_dataloader)} <= {"experts", "router"}
        assert {part for _, part in images_of(cfg.val_dataloader)} == {"val"}
        for name, one in cfg.train_dataloader.dataset.datasets.items():
            assert one.split_dir == "train" and one.data_root.endswith(name.lower())
            assert set(one.split) - {"fractions"} == {"seed", "use"}
    learnt = {row: images_of(cfg.train_dataloader) for row, cfg in configs.items()}
    assert not learnt["base_experts"] & learnt["base_router"]
    assert learnt["grown"] == learnt["base_router"] | learnt["base_experts"] | learnt["alone"]
    experts = learnt["camo"] | learnt["duts"] | learnt["polyp"]
    assert not experts & learnt["specialists"]
    assert experts | learnt["specialists"] == learnt["everything"]


def test_growing_sees_part_of_what_the_old_experts_learnt_from(configs):
    stems = [f"image_{i}" for i in range(1000)]
    one = configs["grown"].train_dataloader.dataset.datasets["CAMO"]

    def part(use, fractions=DEFAULTS["fractions"]):
        return set(split_indices(stems, fractions, 0, use))

    seen = part(one.split.use, one.split.fractions)
    assert part(["router"]) < seen < part(["experts", "router"])
    assert len(seen) == 450 and not seen & part(["val"])


def test_only_the_new_expert_and_its_chance_learn(configs):
    grown, before = configs["grown"], configs["base_router"]
    old = set(before.model.experts)
    assert set(grown.model.experts) == old | {"polyp"}
    assert set(grown.model.frozen) == {"backbone", *(f"experts.{name}" for name in old)}
    assert all(grown.model.experts[name] == before.model.experts[name] for name in old)
    assert grown.model.experts.polyp.learns_from == ("POLYP",)
    assert grown.init_from.grow and grown.init_from.file == "base_router_best.pth"
    assert configs["alone"].train_cfg == grown.train_cfg
    assert grown.model.newcomers == ("polyp",)


def test_rows_wait_for_what_they_start_from(configs, tmp_path):
    study = run.Study(tmp_path, tmp_path / "out")
    jobs = {job.name: job for job in study.jobs(run.ROWS)}
    for row, cfg in configs.items():
        assert f"{cfg.default_hooks.best.name}_best.pth" == study.weights(row).name
        init = cfg.get("init_from") or {}
        files = {init.get("file"), init.get("backbone"), *(init.get("experts") or {}).values()}
        names = {study.weights(before).name for before in run.BEFORE.get(row, ())}
        assert files - {None} == names
        needs = [study.finished(before) for before in run.BEFORE.get(row, ())]
        assert jobs[f"train_{row}"].needs == needs
    assert {name for name in jobs if name.startswith("test_")} == {f"test_{r}" for r in run.TESTED}


def test_prepared_images_are_small_and_the_twin_of_a_test_image_is_left_out(
    tmp_path, monkeypatch, capsys
):
    data = tmp_path / "given"
    for source in run.FOLDERS.values():
        for name in ("images", "masks"):
            (data / source / name).mkdir(parents=True)
        for stem in ("a", run.TWIN):
            image = np.full((300, 704, 3), 90, np.uint8)
            cv2.imwrite(str(data / source / f"images/{stem}.jpg"), image)
            cv2.imwrite(str(data / source / f"masks/{stem}.png"), image[..., 0] // 90 * 255)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "prepare_body", lambda weights: data / "camo/train/images/a.jpg")
    run.prepare(data, tmp_path)
    for target in run.FOLDERS:
        folder = tmp_path / "data/growing" / target
        assert [p.name for p in sorted(folder.rglob("*.*"))] == ["a.jpg", "a.png"]
        assert cv2.imread(str(folder / "images/a.jpg")).shape == (150, 352, 3)
        assert set(np.unique(cv2.imread(str(folder / "masks/a.png")))) == {255}
    assert "data/growing/polyp/train: 0.0 MiB" in capsys.readouterr().out


def result(means, **more):
    """A result whose images lie evenly around these means of each source, in points."""
    table = {}
    for sets in tables.DOMAINS.values():
        for dataset in sets:
            table[dataset] = {
                source: dict(
                    images={
                        str(i): dict.fromkeys(("IoU", "mDice", "MAE"), mean / 100 + step)
                        for i, step in enumerate((-0.1, 0.0, 0.1))
                    }
                )
                for source, mean in means.items()
            }
    training = dict(row=dict(seconds=90, trained=2_000_000))
    return dict(table=table, training=training, **more)


def test_tables_of_results(tmp_path, capsys):
    shares = {d: dict.fromkeys(("share_camo", "share_duts", "share_polyp"), 0.5) for d in TESTS}
    grown = dict(
        kept=dict(tensors=8, differ=0, parts=["backbone", "router"]),
        with_newcomer={dataset: {"0": 1, "1": 0, "2": 0} for dataset in TESTS},
    )
    rows = dict(
        base_router=result(dict(mixture=60, sinet=60)),
        grown=result(dict(mixture=59.5, sinet=60, polyp=50), **grown),
        alone=result(dict(mixture=60.25)),
    )
    for name, row in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    tables.print_tables(tmp_path)
    told = capsys.readouterr().out
    assert "no result of everything, specialists" in told
    assert "0 of 8 tensors of the old backbone, router differ" in told
    text = (tmp_path / "tables.md").read_text()
    assert "| four experts, before | 60.00 | 60.00 | 60.00 | 60.00 | 1.5 | 2.0 |" in text
    assert "| after − before | CAMO IoU | -0.50 | -0.50 to -0.50 | ≥ −0.3: no |" in text
    assert "| after − before | CAMO | 1 of 3 | 50.0 | 49.5 | 40.0 | -0.17 | -0.33 |" in text
    assert "| after − polyps alone | polyps mDice | -0.75 | -0.75 to -0.75 | ≥ −1.0: yes |" in text

    means = dict(mixture=60, camo=58, duts=57, polyp=56, uniform=59, oracle=61)
    rows = dict(
        specialists=result(means, routing_by_dataset=shares), everything=result(dict(mixture=63))
    )
    for name, row in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    tables.print_tables(tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "| router, top-2 | 60.00 | 60.00 | 60.00 | 60.00 | 60.00 | 1.5 | 2.0 |" in text
    assert "| one model of everything | 63.00 | 63.00 | 63.00 | 63.00 | 63.00 | 1.5 | 2.0 |" in text
    assert "| router − their mean | +1.00 (+1.00 to +1.00) |" in text
    assert "| router − one model of everything | -3.00 (-3.00 to -3.00) |" in text


TESTS = ("CAMO", "DUTS", "Kvasir", "CVC-ClinicDB")


def test_what_was_kept_is_counted_and_saved_weights_come_back(tmp_path, capsys):
    body = dict(type="TimmPyramid", name="resnet18")
    model = ModelLevelMoE(body, experts=dict(fpn=dict(type="FPNExpert", channels=8)))
    here = run.Study(tmp_path / "here", tmp_path / "out")
    save_weights(here.weights("base_router"), model, {}, "run")
    with torch.no_grad():
        model.backbone.body.bn1.running_mean.add_(1)
    save_weights(here.weights("grown"), model, {}, "run")
    found = run.kept(here.weights("base_router"), here.weights("grown"))
    assert found["differ"] == 1 and found["tensors"] == len(model.state_dict())

    here.save(["base_router"])
    assert not (tmp_path / "out").exists()  # it has not finished
    here.finished("base_router").parent.mkdir(parents=True)
    here.finished("base_router").write_text("{}")
    here.save(["base_router"])
    away = run.Study(tmp_path / "away", tmp_path / "out")
    away.restore("base_router")
    assert away.finished("base_router").read_text() == "{}"
    assert run.kept(here.weights("base_router"), away.weights("base_router"))["differ"] == 0


def test_the_miniature_is_made_of_the_rows_themselves(tmp_path):
    folder = miniature.miniature(tmp_path, ["grown"])
    small = load_config(folder / "grown.py")
    assert small.model.experts.polyp.own_blocks == 2 and small.init_from.grow
    roots = {node["data_root"] for node in dicts_in(small._cfg_dict) if "data_root" in node}
    assert roots == {str(tmp_path / "data" / name) for name in ("camo", "duts", "polyp")}

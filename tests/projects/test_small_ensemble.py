"""The small ensemble's run: the choice on validation, the packed weights, the card."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from miniature import ROOT, call

from codmoe import Inferencer, create_model
from codmoe.engine.checkpoints import packed, read_meta, read_weights, save_weights
from codmoe.engine.stages import plan
from projects.small_ensemble import measure, run
from projects.small_ensemble.card import BEGIN, END, fill_card

SIZE = 64
TEST = [
    dict(type="LoadCODPair"),
    dict(type="Resize", scale=(SIZE, SIZE), keep_ratio=False),
    dict(type="PackCODInputs", keep_original=True),
]
COMPOSITES = ("Cutouts", "Textures", "Hidden", "Faint", "Plain")
NARROW = dict(depth=2, embed_dim=48, num_heads=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Stage 3 of the recipe in miniature, with photographs; and weights as it leaves them."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("images", "masks"):
        (folder / "complete" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(24):
        mask = np.zeros((60, 80), np.uint8)
        cv2.circle(mask, (20 + i, 30), 14, 255, -1)
        image = rng.integers(0, 90, (60, 80, 3)) + mask[..., None] // 2
        cv2.imwrite(str(folder / f"complete/images/{i}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / f"complete/masks/{i}.png"), mask)
    (folder / "people").symlink_to(folder / "complete")
    root = str(folder)
    sets = {name: dict(length=4, image_size=SIZE, pipeline=TEST) for name in COMPOSITES}
    for name in COMPOSITES[:2]:
        sets[name]["data_root"] = root
    sets["Photos"] = dict(pipeline=TEST, data_root=root)
    narrow = dict(channels=8)
    settings = dict(
        model=dict(
            backbone=dict(
                name="vit_tiny_patch16_224",
                checkpoint=None,
                image_size=SIZE,
                channels=(8, 8, 8, 8),
                layers=(0, 0, 1, 1),
                timm_args=NARROW,
            ),
            experts=dict(
                sinet=narrow,
                pranet=dict(channels=8, deep_channels=8, shallow_channels=8),
                zoomnet=narrow,
                ujsc=dict(channels=8, confidence_channels=8),
            ),
            router=dict(width=8),
        ),
        val_dataloader=dict(dataset=dict(datasets=sets)),
        test_dataloader=dict(dataset=dict(datasets=sets)),
    )
    config = folder / "stage3_small.py"
    base = str(ROOT / "configs/small/stage3.py")
    lines = [f"_base_ = [{base!r}]", *(f"{key} = {value!r}" for key, value in settings.items())]
    config.write_text("\n".join(lines))
    torch.manual_seed(0)
    model = create_model(config)
    torch.nn.init.normal_(model.router.fuse[-1].weight, std=3)
    meta = dict(config=model.cfg.pretty_text, expert_names=list(model.expert_names))
    save_weights(folder / "ensemble_best.pth", model, meta, "run")
    return config, folder / "ensemble_best.pth"


def record(logits, distance, good, dataset="Photos"):
    """An image that expert ``good`` of three gets right and the others get wrong."""
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[:4] = True
    right = torch.where(truth, 4.0, -4.0)
    maps = torch.stack([right if i == good else -0.2 * right for i in range(3)])[None]
    found = dict(maps=maps, logits=torch.tensor([logits]), distance=distance, truth=truth)
    return dict(found, dataset=dataset)


def test_off_its_domain_a_wrong_router_is_taken_back_and_a_right_one_is_not():
    known = [record([6.0, 0.0, 0.0], 0.9, good=0)] * 3
    wrong = [record([0.0, 0.0, 1.5], 2.0, good=0)] * 3
    chosen = measure.choose(wrong, known)
    assert chosen["fallback"] > 0 and chosen["tried"]["off_domain_far"] == 1
    assert chosen["tried"]["at_home"]["top 2, at 1"] == 1 and chosen["top_k"] == 2
    assert chosen["routing"] == 1
    # The mixture is right throughout: it may be surer.
    assert chosen["temperature"] < 1 and chosen["threshold"] == 0.5
    right = [record([6.0, 0.0, 0.0], 2.0, good=0)] * 3
    assert measure.choose(right, known)["fallback"] == 0


def test_a_router_that_is_surer_than_right_is_heard_less():
    known = [record([3.0, 0.0, 0.0], 0.9, good=1)] * 2
    chosen = measure.choose(known, known)
    tried = chosen["tried"]["at_home"]
    assert tried["top 2, at 1"] < 1 and tried["top 2, at 4"] == 1
    assert (chosen["top_k"], chosen["routing"]) == (2, 4)


def test_sets_weigh_the_same_whatever_their_size():
    good, bad = record([9.0, 0.0, 0.0], 0.0, good=0), record([9.0, 0.0, 0.0], 0.0, good=1)
    records = [good] * 3 + [dict(bad, dataset="Hidden")]
    assert measure.mean_iou(records, 0.0, 2) == pytest.approx(0.5)


def test_from_weights_to_the_card(trained, tmp_path, monkeypatch, capsys):
    config, best = trained
    model = create_model(checkpoint=best)
    val = measure.data_set("val", config=str(config))
    with pytest.raises(ValueError, match="knows no images"):
        measure.collect(model, val)
    model.router.familiarity.edge.fill_(1.0)
    records = measure.collect(model, val)
    assert {r["dataset"] for r in records} == {"Photos", *COMPOSITES}
    choice = measure.choose(records[:4], records)
    choice |= dict(fallback=4.0, routing=8.0)
    measure.settle(best, choice, tmp_path / "settled.pth")
    state, meta = read_weights(tmp_path / "settled.pth"), read_meta(tmp_path / "settled.pth")
    last = "router.fuse.2.weight"
    torch.testing.assert_close(state[last] * 8, model.state_dict()[last])
    parts, target = tmp_path / "out", tmp_path / "weights/small_ensemble.safetensors"
    monkeypatch.setattr(run, "PART", 20_000)
    run.in_parts(packed(state, meta), parts, "settled")
    assert len(list(parts.glob("*.part"))) > 2
    (parts / "training.json").write_text(json.dumps(dict(choice=choice)))
    target.parent.mkdir()
    (target.parent / "MODEL_CARD.md").write_text(f"# Card\n\n{BEGIN}\nold\n{END}\n\nEnd.\n")
    shutil.copyfile(best, tmp_path / "before.pth")
    monkeypatch.setattr(measure, "RESEARCH_SETS", dict(CAMO="complete"))
    pictures = sorted((config.parent / "complete/images").iterdir())[:2]
    found = run.finish(parts, config.parent, pictures, target, str(config))
    inferencer = Inferencer(checkpoint=target, device="cpu")
    assert inferencer.threshold == choice["threshold"]
    assert inferencer.model.combiner.temperature == pytest.approx(choice["temperature"], abs=1e-4)
    assert found["rounding"]["bytes"] == target.stat().st_size
    sets = found["after"]["sets"]
    assert set(sets) == {"Photos", "CAMO", *COMPOSITES} and sets["CAMO"]["n"] == 24
    for figures in sets.values():
        experts = {k: v for k, v in figures["sources"].items() if k != "uniform"}
        assert figures["oracle"] >= max(experts.values()) - 1e-9
        assert figures["best_threshold"][1] >= figures["IoU"] - 1e-6 and 0 <= figures["ECE"] <= 1
        assert sum(figures["weights"].values()) == pytest.approx(1, abs=1e-4)
    text = (target.parent / "MODEL_CARD.md").read_text()
    assert text.startswith("# Card\n") and text.endswith("End.\n") and "\nold\n" not in text
    assert f"| CAMO (24) | - | {sets['CAMO']['IoU']:.4f} |" in text
    assert "research only" in text and "fallback 4" in text and "unlike training" in text
    # Again: measured sets are not measured twice, and the first weights count as the earlier ones.
    (parts / "after_CAMO.json").write_text(json.dumps(dict(CAMO=dict(sets["CAMO"], IoU=0.125))))
    again = run.finish(parts, config.parent, pictures, target, str(config))
    assert again["after"]["sets"]["CAMO"]["IoU"] == 0.125 and "before" in again


def test_a_finished_stage_goes_on_on_another_machine(trained, tmp_path, monkeypatch, capsys):
    config, best = trained
    (stage,) = plan([str(config)], tmp_path / "here", [])
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run.save(Path("work"), tmp_path / "out", [str(config)])
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()  # nothing finished
    for path in (*stage.sources, stage.weights):  # in this order: sources are older
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, path)
    (stage,) = plan([str(config)], Path("work"), [])
    stage.begin()
    (stage.work_dir / "finished.json").write_text(json.dumps(dict(run_id="run")))
    assert stage.is_finished()
    run.save(Path("work"), tmp_path / "out", [str(config)])
    monkeypatch.chdir(tmp_path / "there")
    for path in stage.sources:
        path.parent.mkdir(parents=True)
        shutil.copyfile(best, path)
    run.restore(Path("work"), tmp_path / "out", [str(config)])
    (laid,) = plan([str(config)], Path("work"), [])
    assert laid.is_finished()
    ours, theirs = read_weights(best), read_weights(laid.weights)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():  # in half precision
        torch.testing.assert_close(theirs[key].float(), value.float(), atol=1e-3, rtol=1e-3)


def test_mistakes(tmp_path, monkeypatch):
    card, measured = tmp_path / "CARD.md", tmp_path / "measured.json"
    card.write_text("no marks")
    with pytest.raises(ValueError, match="must hold the marks"):
        fill_card(card, measured)
    name = "projects.small_ensemble.card"
    assert "marks" in call(monkeypatch, name, card, measured)
    card.write_text(f"{BEGIN}{END}")
    with pytest.raises(FileNotFoundError, match=r"measured\.json does not exist"):
        fill_card(card, measured)
    measured.write_text("{}")
    with pytest.raises(ValueError, match="holds no figures"):
        fill_card(card, measured)
    assert card.read_text() == f"{BEGIN}{END}"
    with pytest.raises(FileNotFoundError, match="run the step train"):
        run.finish(tmp_path, None, [], tmp_path / "x.safetensors")

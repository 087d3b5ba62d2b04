"""A test run: tables, maps, and pictures of the images that were scored."""

import json

import numpy as np
import pytest
import torch
from miniature import TWO_EXPERTS, build, images, log_of, prepared, write_config
from PIL import Image

from codmoe.engine import testing
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.testing import test as run_test
from codmoe.inference.inferencer import Inferencer

EXPERTS = ["pranet", "sinet", "ujsc", "zoomnet"]


OTHER_SIZES = [(50, 70), (64, 64), (81, 40), (33, 64), (64, 99)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config whose test images differ in size, and weights."""
    folder = tmp_path_factory.mktemp("trained")
    images = folder / "data" / "Test"
    rng = np.random.default_rng(0)
    for kind in ("Image", "GT_Object"):
        (images / kind).mkdir(parents=True)
    for i, size in enumerate(OTHER_SIZES):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[5:20, 8:30] = 255
        Image.fromarray(pixels).save(images / "Image" / f"COD10K-CAM-{i}.png")
        Image.fromarray(mask).save(images / "GT_Object" / f"COD10K-CAM-{i}.png")
    pipeline = [
        dict(type="LoadCODPair"),
        dict(type="Resize", scale=(64, 64), keep_ratio=False),
        dict(type="PackCODInputs", keep_original=True),
    ]
    real = dict(
        type="COD10K",
        data_root=str(folder / "data"),
        subset="Test",
        pipeline=pipeline,
    )
    data = dict(test_dataloader=dict(dataset=dict(datasets=dict(COD10K=real))))
    config = write_config(folder, 3, data)
    torch.manual_seed(5)
    save_weights(folder / "w.pth", build(config), {}, "run")
    return config, folder / "w.pth"


@pytest.fixture
def run(trained, tmp_path):
    config, checkpoint = trained

    def go(work_dir="work", **options):
        return run_test(prepared(config, tmp_path / work_dir), str(checkpoint), **options)

    return go


def test_tables_as_json_and_markdown(run, tmp_path, trained, capsys):
    payload = run()
    written = json.loads((tmp_path / "work" / "test.json").read_text())
    assert written["config"] == str(trained[0]) and written["checkpoint"] == str(trained[1])
    assert list(written["table"]) == ["Synthetic", "COD10K"] == list(payload["table"])
    for rows in written["table"].values():
        assert list(rows) == ["mixture"] and rows["mixture"]["n"] == 5
        assert len(rows["mixture"]["images"]) == 5
    assert {f"share_{name}" for name in EXPERTS} <= set(written["routing"])
    assert "IoU" in written["conventions"] and written["versions"]["codmoe"]
    markdown = (tmp_path / "work" / "test.md").read_text()
    value = written["table"]["COD10K"]["mixture"]["IoU"]
    assert markdown.startswith("| data set | source | n | IoU |")
    assert f"| COD10K | mixture | 5 | {value:.4f} |" in markdown
    shown = capsys.readouterr().out
    assert f"{value:.4f}" in shown and "json: " in shown


def test_every_source(run, tmp_path):
    payload = run(experts=True, json_file=str(tmp_path / "out" / "all.json"))
    rows = payload["table"]["COD10K"]
    assert list(rows) == [*EXPERTS, "uniform", "oracle", "mixture"]
    assert rows["oracle"]["IoU"] >= max(rows[name]["IoU"] for name in EXPERTS)
    for stem, best in rows["oracle"]["images"].items():
        assert best["IoU"] == max(rows[name]["images"][stem]["IoU"] for name in EXPERTS)
    text = (tmp_path / "out" / "all.md").read_text()
    assert all(f"| COD10K | {source} |" in text for source in rows)
    attributes = json.loads((tmp_path / "out" / "all.json").read_text())["attributes"]["COD10K"]
    assert attributes["COD10K-CAM-0"]["area"] == pytest.approx(15 * 22 / (50 * 70))
    assert list(attributes) == list(rows["mixture"]["images"])
    assert (
        "kind" in payload["attributes"]["Synthetic"][next(iter(payload["attributes"]["Synthetic"]))]
    )
    by_area = [r for r in payload["breakdown"]["COD10K"] if r["attribute"] == "area"]
    assert sum(row["n"] for row in by_area) == 5
    total = sum(row["n"] * row["IoU"]["mixture"] for row in by_area)
    assert total / 5 == pytest.approx(rows["mixture"]["IoU"])
    text = (tmp_path / "out" / "all_attributes.md").read_text()
    assert "## COD10K" in text and "| kind |" in text.split("## COD10K")[0]
    assert "regret" in payload["routing"] and not (tmp_path / "work" / "test.json").exists()


def test_sources_that_the_config_asks_for_are_scored(trained, tmp_path):
    config, checkpoint = trained
    asked = [dict(type="CODMetric", sources=["mixture", "sinet"])]
    cfg = prepared(config, tmp_path / "work", test_evaluator=asked)
    payload = run_test(cfg, str(checkpoint))
    assert set(payload["table"]["COD10K"]) == {"mixture", "sinet"}


def test_results_are_never_overwritten(run, tmp_path):
    run()
    folder = tmp_path / "work"
    first = {name: (folder / name).read_bytes() for name in ("test.json", "test.md")}
    run()
    for name, content in first.items():
        stem, suffix = name.split(".")
        (kept,) = folder.glob(f"{stem}.2*.{suffix}")
        assert kept.read_bytes() == content and (folder / name).is_file()


def test_maps_are_the_probabilities_at_the_original_size(run, tmp_path, monkeypatch):
    from codmoe.evaluation.cod_metric import CODMetric

    seen = {}
    real = CODMetric.process

    def process(self, data_batch, data_samples):
        data_samples = list(data_samples)
        for sample in data_samples:
            seen[sample["dataset"], sample["stem"]] = torch.as_tensor(sample["pred_prob"]).clone()
        real(self, data_batch, data_samples)

    monkeypatch.setattr(CODMetric, "process", process)
    out = tmp_path / "maps"
    run(out_dir=str(out))
    files = sorted(out.rglob("*"))
    assert len([p for p in files if p.is_file()]) == 10 == len(seen)
    shapes = set()
    for (dataset, stem), probability in seen.items():
        with Image.open(out / dataset / f"{stem}.png") as image:
            assert image.mode == "L"
            values = np.asarray(image)
        assert values.shape == tuple(probability.shape)
        error = np.abs(values / 255 - probability.numpy()).max()
        assert error <= 0.5 / 255 + 1e-6
        shapes.add(values.shape)
    assert shapes == {*OTHER_SIZES, (64, 64)}


def test_several_views_of_each_image(trained, tmp_path):
    config, checkpoint = trained
    options = dict(experts=True, out_dir=str(tmp_path / "maps"))
    cfg = prepared(config, tmp_path / "views", tta=dict(flip=True, scales=[1, 1.5]))
    cfg.test_dataloader.dataset.datasets.pop("Synthetic")  # of which no pipeline resizes
    payload = run_test(cfg, str(checkpoint), **options)
    assert payload["tta"] == dict(flip=True, scales=[1, 1.5])
    assert set(payload["table"]["COD10K"]) == {*EXPERTS, "mixture", "uniform", "oracle"}
    # The same as by an Inferencer, from image files.
    views = Inferencer(build(config), checkpoint, image_size=64, flip=True, scales=[1, 1.5])
    (image,) = (tmp_path / "maps" / "COD10K").glob("*CAM-2.png")
    (found,) = views(next(checkpoint.parent.rglob("Image/*CAM-2.png")))
    with Image.open(image) as picture:
        assert np.abs(np.asarray(picture) / 255 - found.probability).max() < 0.01
    for wrong, told in ((dict(flips=True), "did you mean 'flip'"), (dict(scales=[]), "scales=")):
        with pytest.raises(ValueError, match=told):
            run_test(prepared(config, tmp_path / "wrong", tta=wrong), str(checkpoint))


def test_a_folder_that_holds_something_is_refused(run, tmp_path):
    out = tmp_path / "maps"
    out.mkdir()
    (out / "mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"maps is not empty; give a new folder"):
        run(out_dir=str(out))
    assert [p.name for p in out.iterdir()] == ["mine.png"]
    assert not (tmp_path / "work" / "test.json").exists()


@pytest.mark.parametrize("option", ["json_file", "grid"])
def test_what_cannot_be_written_is_told_before_the_test(run, tmp_path, monkeypatch, option):
    monkeypatch.setattr(testing, "test_runner", None)  # nothing is tested
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written: Not a directory: '.*file/a\.png'"):
        run(**{option: str(tmp_path / "file" / "a.png")})


def test_a_grid_of_the_first_images(run, tmp_path):
    run(grid=str(tmp_path / "grid.png"), grid_rows=2)
    with Image.open(tmp_path / "grid.png") as grid:
        small = grid.size
    run(work_dir="again", grid=str(tmp_path / "more.png"), grid_rows=4)
    with Image.open(tmp_path / "more.png") as grid:
        assert grid.size[1] > small[1] and grid.size[0] == small[0]


def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path):
    config, checkpoint = trained
    cfg = prepared(config, tmp_path / "work", **{"model.experts.sinet.channels": 24})
    with pytest.raises(ValueError, match=r"w\.pth does not fit this model.*experts\.sinet"):
        run_test(cfg, str(checkpoint))
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist"):
        run_test(prepared(config, tmp_path / "work"), str(tmp_path / "absent.pth"))
    assert not list(tmp_path.rglob("test.json"))


PIPELINE = [dict(type="LoadCODPair"), dict(type="PackCODInputs", keep_original=True)]


def test_pictures_and_cost_of_the_images_that_were_scored(tmp_path, monkeypatch, capsys):
    small = dict(images(3, PIPELINE)["dataset"], type="SyntheticCamouflage", part="test")
    group = dict(A=small, B=dict(small, length=2, part="val"))
    test = dict(test_dataloader=dict(dataset=dict(datasets=dict(Synthetic=None, **group))))
    config = write_config(tmp_path, 3, TWO_EXPERTS, test)
    torch.manual_seed(3)
    save_weights(tmp_path / "w.pth", build(config), {}, "run")
    out, weights = tmp_path / "out", str(tmp_path / "w.pth")
    payload = run_test(
        prepared(config, tmp_path / "work"),
        weights,
        experts=True,
        json_file=str(out / "all.json"),
        out_dir=str(tmp_path / "maps"),
        pictures=str(out / "small"),
        cost=True,
    )
    told = payload["pictures"]
    assert told["folder"] == "small" and told["panels"][:3] == ["image", "truth", "mixture"]
    assert sorted(told["panels"][3:]) == ["pranet", "sinet"]
    assert {name: len(files) for name, files in told["files"].items()} == dict(A=3, B=2)
    for name, files in told["files"].items():
        for stem, file in files.items():
            strip = np.asarray(Image.open(out / "small" / file).convert("L")).astype(float)
            panels = dict(zip(told["panels"], np.split(strip, len(told["panels"]), 1), strict=True))
            saved = np.asarray(Image.open(tmp_path / "maps" / name / f"{stem}.png")).astype(float)
            assert np.abs(panels["mixture"] - saved).mean() < 6
            area = payload["attributes"][name][stem]["area"]
            assert (panels["truth"] > 127).mean() == pytest.approx(area, abs=0.02)
    cost = payload["cost"]["sources"]
    assert set(cost) == {"sinet", "pranet", "uniform", "mixture"}
    assert cost["mixture"]["parameters"] > cost["uniform"]["parameters"]
    assert all(row["ms"] > 0 for row in cost.values())
    assert json.loads((out / "all.json").read_text())["cost"]["size"] == [64, 64]

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(testing, "panels", fail)
    monkeypatch.setattr(testing, "measure_cost", fail)
    again = run_test(
        prepared(config, tmp_path / "again"), weights, pictures=str(out / "more"), cost=True
    )
    assert (
        "warning: no cost (OSError: disk full)" in capsys.readouterr().err and "cost" not in again
    )
    assert again["table"].keys() == payload["table"].keys()
    assert not (out / "more").exists() or not list((out / "more").iterdir())
    assert "no more pictures" in log_of(tmp_path / "again") and "disk full" in log_of(
        tmp_path / "again"
    )


def test_pictures_go_into_no_folder_of_others(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.webp").write_bytes(b"mine")
    with pytest.raises(ValueError, match="mine holds other files"):
        run(pictures=str(tmp_path / "mine"))

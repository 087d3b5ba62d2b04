"""`data_root` from the config, from `--data-root` and from CODMOE_DATA_ROOT."""

import json
import shutil

import pytest
import torch
from folders import common_tree, separate_downloads
from miniature import ROOT, SIZE, build, call

from codmoe.engine.checkpoints import save_weights
from codmoe.engine.stages import check_data, plan

CONFIG = """
_base_ = [{base!r}]
resize = dict(type="Resize", scale=({size}, {size}), keep_ratio=False)
train = [dict(type="LoadCODPair"), resize, dict(type="PackCODInputs")]
test = [dict(type="LoadCODPair"), resize, dict(type="PackCODInputs", keep_original=True)]
benchmark = dict(type="CODBenchmark", data_root={data_root!r})
checkpoint_dir = {weights!r}
split = dict(file={weights!r} + "/split.json")
for_training = dict(
    COD10K=dict(benchmark, benchmark="COD10K", part="train", pipeline=train),
    CAMO=dict(benchmark, benchmark="CAMO", part="train", pipeline=train))
for_validation = {{k: dict(v, pipeline=test) for k, v in for_training.items()}}
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type="DatasetGroup", split=dict(split, use="experts"), datasets=for_training))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type="DatasetGroup", split=dict(split, use="val"), datasets=for_validation))
test_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(
    _delete_=True, type="DatasetGroup", datasets=dict(
        CHAMELEON=dict(benchmark, benchmark="CHAMELEON", part="test", pipeline=test))))
model = dict(backbone=dict(checkpoint=None), experts=dict(pranet=None, ujsc=None, zoomnet=None))
train_cfg = dict(max_epochs=1, val_interval=1)
"""


WAYS = ["config", "option", "environment"]


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.delenv("CODMOE_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)

    def place(way, layout=common_tree):
        """The config, and the arguments that go with a way to name the data."""
        layout(tmp_path / "sets")
        data_root = str(tmp_path / "sets") if way == "config" else "data"
        if way == "environment":
            monkeypatch.setenv("CODMOE_DATA_ROOT", str(tmp_path / "sets"))
        path = tmp_path / f"{way}.py"
        base = str(ROOT / "configs/quickstart/stage1.py")
        weights = str(tmp_path / "weights")
        path.write_text(CONFIG.format(base=base, size=SIZE, data_root=data_root, weights=weights))
        return path, ["--data-root", str(tmp_path / "sets")] if way == "option" else []

    return place


@pytest.mark.parametrize("way", WAYS)
def test_train(tmp_path, monkeypatch, where, way):
    """Up to the first step: the number of images is told, so they were found."""
    config, arguments = where(way, separate_downloads)
    options = ("--work-dir", tmp_path / "work", "--cfg-options", "train_dataloader.batch_size=99")
    code = call(monkeypatch, "train", config, *arguments, *options)
    # Of COD10K 15 of 20, of CAMO 8 of 10.
    assert code.startswith("error: the training set holds 23 images, less than one batch of 99")
    split = json.loads((tmp_path / "weights" / "split.json").read_text())
    assert {name: entry["images"] for name, entry in split["sets"].items()} == {
        "COD10K": 20,
        "CAMO": 10,
    }


@pytest.mark.parametrize("way", WAYS)
def test_test(tmp_path, monkeypatch, where, way):
    config, arguments = where(way)
    torch.manual_seed(0)
    save_weights(tmp_path / "w.pth", build(config), {}, "x")
    arguments = ("--work-dir", tmp_path / "work", *arguments)
    assert call(monkeypatch, "test", config, tmp_path / "w.pth", *arguments) is None
    table = json.loads((tmp_path / "work" / "test.json").read_text())["table"]
    assert table["CHAMELEON"]["mixture"]["n"] == 2


@pytest.mark.parametrize("way", WAYS)
def test_run_stages_checks_it_before_the_first(tmp_path, where, way):
    config, arguments = where(way)
    stages = plan(
        [str(config)], tmp_path / "work", [], data_root=arguments[1] if arguments else None
    )
    shutil.rmtree(tmp_path / "sets" / "TestDataset" / "CHAMELEON")
    with pytest.raises(FileNotFoundError, match=r"test_dataloader.*no CHAMELEON test set in"):
        check_data(stages)

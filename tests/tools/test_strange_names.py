"""Names of a stranger's files go through evaluation, comparison and pictures as they are."""

import csv
import io
import json
import re

import cv2
import numpy as np
import pytest
import torch
from miniature import ROOT, STRANGE, call
from PIL import Image
from rich.console import Console

from codmoe.console import TextTable, markdown_text
from codmoe.evaluation.compare import latex_escape, load_methods, to_csv
from codmoe.visualization.grid import GridRow, save_grid

FILES = [name for name in STRANGE if "/" not in name]


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Two folders of maps and one of masks, all under the strange names."""
    folder = tmp_path_factory.mktemp("maps")
    mask = np.zeros((24, 24), np.uint8)
    mask[6:15, 5:16] = 255
    for kind in ("gt", "one", "two"):
        (folder / kind).mkdir()
        for name in FILES:
            Image.fromarray(mask).save(folder / kind / f"{name}.png")
    return folder


def test_from_maps_to_tables(maps, tmp_path, monkeypatch):
    for method in ("one", "two"):
        given = ("--pred", maps / method, "--gt", maps / "gt", "--workers", 1, "--json")
        name = f"{method} |<[x]\x1b$_"
        given = (*given, tmp_path / f"{method}.json", "--datasets", "=set|\udcff", "--method", name)
        assert call(monkeypatch, "eval_maps", *given) is None
    images = json.loads((tmp_path / "one.json").read_text())["images"]
    assert set(images) == set(FILES)
    results = [tmp_path / "one.json", tmp_path / "two.json"]
    assert call(monkeypatch, "analysis/compare", *results, "--out", tmp_path / "out") is None
    markdown = (tmp_path / "out/compare.md").read_text(encoding="utf-8")
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, "cells stay cells"
    assert r"one \|<[x]\\x1b$_" in markdown
    rows = list(csv.DictReader((tmp_path / "out/compare.csv").open(encoding="utf-8")))
    assert {row["dataset"] for row in rows} == {r"'=set|\udcff"} and len(rows) == 2
    assert "\x1b" not in (tmp_path / "out/compare.tex").read_text(encoding="utf-8")
    assert len(load_methods(results)) == 2


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_stays_a_name_in_every_format(name, tmp_path):
    text = io.StringIO()
    table = TextTable([name, "n"], [[name, "1"], None, [name, "2"]], title=name, notes=[name])
    table.print(Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert text.getvalue().encode() and "\x1b" not in text.getvalue()
    assert len(lines) == 9
    marked = table.markdown()
    assert len(marked.splitlines()) == 6 and marked.encode()
    assert not re.search(r"(?<!\\)(\\\\)*(<\w|[`*]|\]\()", markdown_text(name))
    found = list(csv.reader(io.StringIO(to_csv([dict(a=name, n=1.0)], ["a", "n"]))))
    assert len(found) == 2 and not found[1][0].startswith(("=", "-", "+", "@"))
    assert latex_escape(name).isprintable()


def test_pictures_with_strange_titles(tmp_path):
    image, mask = np.zeros((32, 32, 3), np.uint8), torch.zeros(32, 32)
    maps = dict(e=torch.rand(32, 32))
    rows = [
        GridRow(image=image, gt=mask, expert_probs=maps, mixture=maps["e"], weights=dict(e=1.0),
                title=name)
        for name in STRANGE
    ]  # fmt: skip
    save_grid(rows, tmp_path / "g.png", expert_names=["e"])
    assert cv2.imread(str(tmp_path / "g.png")) is not None


def test_an_image_above_the_limit_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "data/Imgs").mkdir(parents=True)
    (tmp_path / "data/GT").mkdir()
    draw = np.random.default_rng(0)
    for suffix in ("png", "jpg"):
        for folder in ("Imgs", "GT"):
            pixels = draw.integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/{folder}/a.{suffix}")
        file = tmp_path / f"data/Imgs/a.{suffix}"
        said = call(monkeypatch, "predict", file, "--out", tmp_path / "out")
        assert f": {file} has more than 200 pixels; scale it down, or cut it into pieces" in said
        assert said.startswith("error: 1 of 1 images cannot be read") and "\n" not in said
    (tmp_path / "data/Imgs/a.jpg").unlink()
    (tmp_path / "data/GT/a.jpg").unlink()
    config = tmp_path / "mine.py"
    config.write_text(
        f"_base_ = [{str(ROOT / 'configs/quickstart/stage1.py')!r}]\n"
        "train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict("
        "_delete_=True, type='CODDataset', data_root='data', image_dir='Imgs', mask_dir='GT',"
        "pipeline=[dict(type='LoadCODPair'), dict(type='PackCODInputs')]))\n"
    )
    monkeypatch.chdir(tmp_path)
    said = call(monkeypatch, "train", config)
    assert said.startswith("error: ") and "a.png has more than 200 pixels" in said
    assert call(monkeypatch, "data/doctor", "data", "--workers", 1) == 1

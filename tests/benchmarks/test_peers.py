"""Models of others are made, timed beside ours, and what is wrong with them is said."""

import json
import sys
from functools import partial

import pytest
import torch
from miniature import TWO_EXPERTS, call, write_config
from torch import nn

from benchmarks import peers
from benchmarks.peers import Peer, maps_of, peer_training_step
from codmoe.inference.benchmark import images_of

NET = """
import torch
from torch import nn
from lib.width import WIDTH, cut

class Net(nn.Module):
    def __init__(self, kernel=1):
        super().__init__()
        self.layer = nn.Conv2d(3, WIDTH, kernel, padding=kernel // 2)

    def forward(self, images):
        found = cut(self.layer(images))
        return {answer}

def number():
    return 3
"""

WIDTHS = """
WIDTH = {}

def cut(maps):
    return maps[:, :WIDTH]
"""


@pytest.fixture
def checkouts(tmp_path):
    """Two repositories that both call their package ``lib``."""
    folders = []
    for width, answer in ((2, "dict(maps=[found, (found,)], size=3)"), (5, "[found]")):
        folder = tmp_path / f"of_{width}" / "lib"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "width.py").write_text(WIDTHS.format(width))
        (folder / "net.py").write_text(NET.replace("{answer}", answer))
        folders.append(str(folder.parent))
    return folders


def test_others_stand_beside_ours_in_one_table_and_file(tmp_path, checkouts, monkeypatch, capsys):
    first, second = checkouts
    config, out = write_config(tmp_path, 3, dict(init_from=None), TWO_EXPERTS), tmp_path / "p.json"
    words = [config, "--peer", f"{first}:lib.net:Net", "--peer", f"{second}:lib.net:Net"]
    words += ["kernel=3", "--batch-sizes", 2, "--sizes", 64, "--train", "--repeats", 2]
    words += ["--executions", "eager", "prepared", "cudagraph", "--routes", "pranet"]
    words += ["--warmup", 1, "--device", "cpu", "--json", out]
    assert call(monkeypatch, "benchmarks.peers", *words) is None
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    rows = result["rows"]
    assert all(list(row) == list(result["columns"]) == list(peers.OUR_COLUMNS) for row in rows)
    found = {(r["model"], r["what"], r["execution"]): r for r in rows}
    ours, theirs = str(config), ["lib.net:Net", "lib.net:Net(3)"]
    assert len(found) == len(rows) and set(found) == {
        *((name, what, "eager") for name in (ours, *theirs) for what in ("inference", "train")),
        (ours, "inference", "prepared"),
        *((name, "inference", "cudagraph") for name in theirs),
    }
    for (name, _, execution), row in found.items():
        if execution == "cudagraph":
            assert "need a GPU" in row["error"]
            continue
        assert row["error"] is None and row["n"] == 2 and row["images_per_second"] > 0
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert (row["route"] is None) == (name != ours)
    # Each with the width of its own ``lib``, of which nothing stays importable.
    parameters = [found[name, "inference", "eager"]["active_parameters"] for name in theirs]
    assert parameters == [2 * 4, 5 * 28] and "lib" not in sys.modules
    # 2 and 5 maps from 3 channels; a multiply-add counts as two.
    flops = [found[name, "inference", "eager"]["gflops"] * 1e9 for name in theirs]
    assert flops == pytest.approx([2 * 64**2 * 3 * 2, 2 * 64**2 * 27 * 5])
    assert "lib.net:Net(3)" in text and ours in text


def test_others_of_one_name_are_compiled_each_with_its_own_modules(checkouts, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    settings = dict(batch_sizes=[1], sizes=[32], device="cpu", repeats=1, warmup=1, train=True)
    theirs = [[f"{folder}:lib.net:Net"] for folder in checkouts]
    rows = peers.benchmark([], theirs, executions=["compiled"], **settings)["rows"]
    assert [(row["what"], row["error"]) for row in rows] == [
        (what, None) for what in ("inference", "train") for _ in checkouts
    ]


def test_a_route_of_ours_includes_the_router(tmp_path):
    config = str(write_config(tmp_path, 3, dict(init_from=None), TWO_EXPERTS))
    settings = dict(batch_sizes=[1], sizes=[64], repeats=1, warmup=1, device="cpu")
    (row,) = peers.benchmark([config], routes=["sinet"], **settings)["rows"]
    (whole,) = peers.benchmark([config], routes=["pranet,sinet"], **settings)["rows"]
    (auto,) = peers.benchmark([config], routes=["auto"], **settings)["rows"]
    assert row["gflops"] < whole["gflops"] == pytest.approx(auto["gflops"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["timm"], r"--peer timm: give MODULE:CALLABLE"),
        (["no_such_module:net"], r"No module named 'no_such_module'; .*FOLDER:MODULE:CALLABLE"),
        (["nowhere:lib.net:Net"], r"nowhere is no folder; give that of the checkout"),
        (["HERE:lib.net:Nett"], r"lib.net has no callable 'Nett'; did you mean 'Net'"),
        (["HERE:lib.net:Net", "deep"], r"'deep' is not KEY=VALUE"),
        (["HERE:lib.net:Net", "depth=3"], r"unexpected keyword.*'depth'.*as KEY=VALUE"),
        (["HERE:lib.net:number"], r"returns a int; give what returns a model"),
    ],
)
def test_what_makes_no_model_is_told_with_the_fix(checkouts, words, said):
    with pytest.raises(ValueError, match=said):
        Peer([word.replace("HERE", checkouts[0]) for word in words])


def test_a_peer_that_fails_is_a_row_with_the_error(checkouts):
    settings = dict(batch_sizes=[1], sizes=[64], device="cpu", repeats=1, warmup=0)
    linear = ["torch.nn:Linear", "in_features=3", "out_features=1"]
    good = [f"{checkouts[0]}:lib.net:Net"]
    rows = peers.benchmark([], [linear, good], **settings)["rows"]
    assert "RuntimeError" in rows[0]["error"] and rows[1]["error"] is None
    with pytest.raises(ValueError, match="nothing to time"):
        peers.benchmark([])


def test_a_training_step_learns():
    torch.manual_seed(0)
    model, images = nn.Conv2d(3, 1, 1), images_of(2, 16, torch.device("cpu"))
    step = peer_training_step(model, images, "fp32")
    losses = [step().item() for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    with pytest.raises(ValueError, match="training in bf16 needs a GPU"):
        peer_training_step(model, images, "bf16")
    with pytest.raises(ValueError, match="no torch module"):
        peer_training_step(torch.sigmoid, images, "fp32")


def test_maps_are_found_wherever_they_lie():
    map_ = torch.zeros(2, 1, 4, 4, requires_grad=True) + 1
    found = maps_of(dict(a=[map_, (map_,)], n=3, label=torch.zeros(2), logits=map_.mean((2, 3))))
    assert [tuple(each.shape) for each in found] == [(2, 1, 4, 4), (2, 1, 4, 4), (2, 1, 1, 1)]
    with pytest.raises(ValueError, match="no tensor that depends"):
        maps_of([torch.zeros(2)])

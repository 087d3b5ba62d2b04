import csv
import json

import cv2
import numpy as np
import pytest
from miniature import call

from codmoe.evaluation import CONVENTIONS, CODMetric
from codmoe.files import save_json


def result(path, noise, stems="abcdef", curves=True):
    """What tools/test.py writes, from blurred masks with ``noise`` on them, scored for real."""
    random = np.random.default_rng(0)
    samples = []
    for index, stem in enumerate(stems):
        gt = np.zeros((40, 50), np.uint8)
        cv2.circle(gt, (15 + 3 * index, 20), 6 + index, 1, -1)
        spread = noise * random.random((40, 50))
        prob = np.clip(0.8 * gt + spread, 0, 1).astype(np.float32)
        samples.append({"stem": stem, "dataset": "CAMO", "gt_mask": gt, "pred_prob": prob})
    metric = CODMetric()
    metric.process(None, samples)
    metric.evaluate(len(samples))
    table = metric.table
    row = table["CAMO"]["mixture"]
    if curves:
        ramp = np.linspace(1, 0, 256)
        names = ("threshold", "Precision", "Recall", "Fm", "Em")
        row.setdefault("curves", dict.fromkeys(names, ramp))
    else:
        row.pop("curves", None)
    payload = {"config": "c", "checkpoint": "out/best.pth", "conventions": CONVENTIONS}
    return save_json(path, payload | {"table": table})


def maps(path, source):
    """What tools/eval_maps.py writes for one data set, of the same numbers."""
    data = json.loads(source.read_text())
    extra = {"method": "Paper & Co", "dataset": "CAMO", "conventions": data["conventions"]}
    return save_json(path, data["table"]["CAMO"]["mixture"] | extra)


def test_from_result_files_to_tables_and_curves(tmp_path, monkeypatch, capsys):
    good, bad = result(tmp_path / "good.json", 0.3), result(tmp_path / "bad.json", 0.9)
    paper = maps(tmp_path / "paper.json", bad)
    out = tmp_path / "out"
    arguments = (good, bad, paper, "--out", out, "--baseline", "Paper & Co")
    assert call(monkeypatch, "analysis/compare", *arguments) is None
    printed = capsys.readouterr().out
    assert "best (good)" in printed and "Paper & Co" in printed
    files = {file.name for file in out.iterdir()}
    kinds = (".md", ".tex", ".csv")
    tables = {name + kind for name in ("compare", "differences") for kind in kinds}
    assert files == tables | {"PR.png", "F.png", "E.png"}

    assert "[bold]" not in printed and CONVENTIONS["IoU"].split("; ")[0] in printed
    rows = list(csv.DictReader((out / "differences.csv").read_text().splitlines()))
    verdicts = {(row["method"], row["metric"]): row["verdict"] for row in rows}
    assert verdicts["best (good)", "IoU"] == verdicts["best (good)", "MAE"] == "better"
    # The same numbers in another form differ by nothing.
    assert verdicts["best (bad)", "IoU"] == verdicts["best (bad)", "Sm"] == "undecided"
    assert r"{Paper \& Co} & \underline{" in (out / "compare.tex").read_text()
    assert r"{best (good)} & $\mathbf{+" in (out / "differences.tex").read_text()

    metrics = ("--metrics", "maxFm", "--names", "A", "B", "--plots", "svg")
    assert call(monkeypatch, "analysis/compare", good, bad, *metrics, "--out", out) is None
    assert (
        "no interval for maxFm (CAMO): a maximum over thresholds"
        in (out / "differences.md").read_text()
    )
    assert len(list(out.iterdir())) == len(files) + len(tables) + 3


def test_older_files_without_curves(tmp_path, monkeypatch, capsys):
    old = result(tmp_path / "old.json", 0.3, curves=False)
    assert call(monkeypatch, "analysis/compare", old, "--out", tmp_path / "out") is None
    assert "without curves, so not drawn: best on CAMO" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "1 image(s) (f) of 'best (one)' only"),
        (("--sources", "sinnet"), "no source 'sinnet'"),
        (("--datasets", "CAM0"), "did you mean 'CAMO'"),
        (("--names", "x"), "give each file one name"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, options, words):
    one = result(tmp_path / "one.json", 0.3)
    two = result(tmp_path / "two.json", 0.3, stems="abcde")
    code = call(monkeypatch, "analysis/compare", one, two, "--out", tmp_path / "out", *options)
    assert code.startswith("error: ") and "\n" not in code and words in code
    assert not (tmp_path / "out").exists()


def test_an_absent_file(tmp_path, monkeypatch):
    code = call(monkeypatch, "analysis/compare", tmp_path / "nowhere.json")
    missing = tmp_path / "nowhere.json"
    made = "make it with --json of codmoe test or codmoe eval"
    assert code == f"error: The result file {missing} does not exist; {made}"
    (tmp_path / "half.json").write_text('{"a":')
    code = call(monkeypatch, "analysis/compare", tmp_path / "half.json")
    assert "half.json is no JSON file (" in code and "give what --json of codmoe test" in code

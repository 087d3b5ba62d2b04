import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from codmoe.evaluation.compare import (
    Comparison,
    Method,
    compare,
    comparison_table,
    difference_table,
    differences_to_latex,
    latex_escape,
    load_methods,
    print_comparison,
    to_latex,
    write_comparison,
)
from codmoe.evaluation.tables import DEFAULT_METRICS
from codmoe.files import save_json

NAN = float("nan")
MEASURES = DEFAULT_METRICS[:9]  # those that nobody has to ask for


def row(iou=0.5, **extra):
    return {"IoU": iou, "MAE": math.nan, "n": 1, "images": {"a": {"IoU": iou, "MAE": None}}} | extra


def run(path, sources=("mixture", "sinet"), **extra):
    table = {"CAMO": {source: row() for source in sources}}
    return save_json(path, {"conventions": {"IoU": "at 0.5"}, "table": table} | extra)


def test_a_run_a_map_folder_and_several(tmp_path):
    curves = {"threshold": [1, 0], "Fm": [None, 0.5]}
    files = [
        run(tmp_path / "test.json", checkpoint="out/ensemble_best.pth"),
        save_json(tmp_path / "b.json", row(0.7, method="PVT-v2.1", dataset="NC4K", curves=curves)),
        run(tmp_path / "c.json", sources=("ZoomNeXt",)),
    ]
    mixture, maps, several = load_methods(files)
    assert (mixture.name, mixture.source) == ("ensemble_best", "mixture")
    assert mixture.conventions == {"IoU": "at 0.5"} and mixture.path == files[0]
    assert mixture.rows["CAMO"]["IoU"] == 0.5 and math.isnan(mixture.rows["CAMO"]["MAE"])
    assert math.isnan(mixture.rows["CAMO"]["images"]["a"]["MAE"])
    assert (maps.name, list(maps.rows)) == ("PVT-v2.1", ["NC4K"])
    assert math.isnan(maps.rows["NC4K"]["curves"]["Fm"][0])
    assert (several.name, several.source) == ("ZoomNeXt", "ZoomNeXt")


def test_sources(tmp_path):
    files = [
        run(tmp_path / "test.json", checkpoint="best.pth"),
        save_json(tmp_path / "b.json", row(method="paper", dataset="CAMO")),
    ]

    def names(*sources):
        return [method.name for method in load_methods(files, sources=sources)]

    assert names("all") == ["best/mixture", "best/sinet", "paper"]
    assert names("sinet") == ["best", "paper"]
    with pytest.raises(ValueError, match="no source 'sinnet'; did you mean 'sinet'"):
        names("sinnet")
    lone = run(tmp_path / "d.json", sources=("mixture",), checkpoint="best.pth")
    with pytest.raises(ValueError, match="no source 'sinet'; valid names: all, mixture"):
        load_methods([lone], sources=["sinet"])


def test_names_are_made_unique(tmp_path):
    files = [
        run(tmp_path / "one" / "test.json", checkpoint="best.pth"),
        run(tmp_path / "one" / "other.json", checkpoint="best.pth"),
        run(tmp_path / "two" / "test.json", checkpoint="best.pth"),
        run(tmp_path / "d.json", checkpoint="last.pth"),
    ]
    names = [method.name for method in load_methods(files)]
    assert names == ["best (one/test)", "best (other)", "best (two/test)", "last"]
    again = [method.name for method in load_methods([files[0], files[0]])]
    assert again == ["best (1)", "best (2)"]
    assert [m.name for m in load_methods(files[:2], names=["A", "B"])] == ["A", "B"]
    with pytest.raises(
        ValueError, match=r"1 name\(s\) for 2 file\(s\): A; give each file one name"
    ):
        load_methods(files[:2], names=["A"])


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("{", "no JSON file"),
        ([1], "no result file"),
        ({"IoU": 0.5}, "neither a `table`"),
        ({"table": {}}, "neither a `table`"),
        ({"table": {"CAMO": {}}}, "neither a `table`"),
        ({"table": {"CAMO": 1}}, "neither a `table`"),
        ({"table": {"CAMO": {"mixture": {"IoU": 1, "n": 3}}}}, "'mixture' on 'CAMO' has no values"),
        (row(n=4), "says n = 4 and lists 1 images"),
    ],
)
def test_other_files_are_named(tmp_path, payload, words):
    path = tmp_path / "x.json"
    if isinstance(payload, str):
        path.write_text(payload)
    else:
        save_json(path, payload)
    with pytest.raises(ValueError, match=words) as caught:
        load_methods([path])
    assert str(path) in str(caught.value)


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        load_methods([tmp_path / "nowhere.json"])
    with pytest.raises(ValueError, match="no result file to compare"):
        load_methods([])


def method(name, datasets, source="mixture", conventions=None, **extra):
    """``datasets``: {data set: {metric: values per image}}; the row holds their means."""
    rows = {}
    for dataset, metrics in datasets.items():
        n = len(next(iter(metrics.values())))
        images = {f"{i:02}": {key: v[i] for key, v in metrics.items()} for i in range(n)}
        means = {key: float(np.nanmean(values)) for key, values in metrics.items()}
        rows[dataset] = {**means, "n": n, "images": images, **extra}
    return Method(name, source, Path(f"{name}.json"), rows, conventions or {})


LOW = {"IoU": [0.2, 0.4, 0.6], "MAE": [0.1, 0.2, 0.3]}
HIGH = {"IoU": [0.3, 0.5, 0.7], "MAE": [0.05, 0.15, 0.25]}


def test_rows_ranks_and_differences_by_hand():
    found = compare([method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH})])
    assert found.metrics == ["IoU", "MAE"]
    assert found.rows[1] == {
        "dataset": "CAMO",
        "method": "b",
        "source": "mixture",
        "file": "b.json",
        "n": 3,
        "IoU": pytest.approx(0.5),
        "MAE": pytest.approx(0.15),
    }
    assert found.ranks == {(1, "IoU"): 1, (1, "MAE"): 1}
    iou, mae = found.differences
    assert (iou["difference"], iou["low"], iou["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert (mae["difference"], mae["low"], mae["high"]) == pytest.approx((-0.05, -0.05, -0.05))
    assert (iou["verdict"], mae["verdict"]) == ("better", "better")
    assert any(caveat.startswith("CAMO: fewer than 100 images") for caveat in found.caveats)
    assert any("(2 of 2)" in caveat for caveat in found.caveats)
    turned = compare([method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH})], baseline="b")
    assert [row["verdict"] for row in turned.differences] == ["worse", "worse"]


def test_an_interval_over_zero_decides_nothing():
    random = np.random.default_rng(0)
    values = random.random(60)
    noisy = values + random.normal(0, 0.1, 60)
    noisy -= (noisy - values).mean() - 0.001
    pair = [method("a", {"d": {"IoU": values}}), method("b", {"d": {"IoU": noisy}})]
    (row,) = compare(pair).differences
    assert row["verdict"] == "undecided" and row["low"] < 0 < row["high"]
    assert row["difference"] == pytest.approx(0.001)


def test_the_oracle_is_not_ranked():
    values = {"a": 0.5, "b": 0.4, "c": 0.3}
    methods = [method(name, {"x": {"IoU": [v]}}) for name, v in values.items()]
    methods.append(method("best", {"x": {"IoU": [0.9]}}, source="oracle"))
    found = compare(methods)
    assert found.ranks == {(0, "IoU"): 1, (1, "IoU"): 2}
    assert found.notes[-1].startswith("oracle: ")


def test_other_image_sets_are_an_error_that_lists_stems():
    longer = {"IoU": [0.1] * 10}
    pair = [method("a", {"CAMO": {"IoU": [0.1] * 3}}), method("b", {"CAMO": longer})]
    with pytest.raises(ValueError) as caught:
        compare(pair)
    text = str(caught.value)
    assert "'a' and 'b' were not scored on the same images of CAMO" in text
    assert "7 image(s) (03, 04, 05, 06, 07 and 2 more) of 'b' only" in text
    renamed = method("c", {"CAMO": {"IoU": [0.1] * 3}})
    renamed.rows["CAMO"]["images"]["x"] = renamed.rows["CAMO"]["images"].pop("02")
    with pytest.raises(ValueError, match=r"\(02\) of 'a' only; 1 image\(s\) \(x\) of 'c' only"):
        compare([pair[0], renamed])


def test_the_order_of_images_does_not_matter():
    turned = method("b", {"CAMO": HIGH})
    images = turned.rows["CAMO"]["images"]
    turned.rows["CAMO"]["images"] = dict(reversed(images.items()))
    (row, _) = compare([method("a", {"CAMO": LOW}), turned]).differences
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.1))


def test_maxima_and_pooled_numbers_have_no_interval():
    a, b = (method(name, {"CAMO": values}) for name, values in (("a", LOW), ("b", HIGH)))
    for one in (a, b):
        one.rows["CAMO"] |= {"maxFm": 0.8, "odd": 0.9}
        for values in one.rows["CAMO"]["images"].values():
            values["odd"] = 0.5
    b.rows["CAMO"]["new"] = 0.5
    found = compare([a, b], metrics=["IoU", "maxFm", "odd", "new"])
    assert [row["metric"] for row in found.differences] == ["IoU"]
    assert math.isnan(found.rows[0]["new"]) and found.rows[0]["maxFm"] == 0.8
    without = [caveat for caveat in found.caveats if caveat.startswith("no interval")]
    assert "maxFm (CAMO): a maximum over thresholds of the mean curve" in without[0]
    assert "odd (CAMO): its values per image do not average" in without[1]
    assert "new (CAMO): a result file does not have it" in without[2]


def test_a_data_set_that_one_lacks():
    found = compare([method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH, "NC4K": HIGH})])
    assert [(row["dataset"], row["method"]) for row in found.rows] == [
        ("CAMO", "a"),
        ("CAMO", "b"),
        ("NC4K", "b"),
    ]
    assert {row["dataset"] for row in found.differences} == {"CAMO"}
    assert found.caveats[-1].startswith("no differences on NC4K: a has no result there (sets are")


def test_results_without_a_common_data_set_say_so(capsys):
    found = compare([method("a", {"CAMO": LOW}), method("b", {"GT [v2]": LOW})])
    print_comparison(found)
    assert not found.differences
    said = " ".join(capsys.readouterr().out.split())
    assert "no differences on GT [v2]: a has no result there" in said


def test_conventions_that_differ_are_told():
    said = {"IoU": "at 0.5; per image", "MAE": "mean error; per image"}
    a = method("a", {"CAMO": LOW}, conventions=said)
    same = compare([a, method("b", {"CAMO": HIGH}, conventions=said)])
    assert same.notes == ["IoU (at 0.5), MAE (mean error): per image"]
    other = method("b", {"CAMO": HIGH}, conventions=said | {"IoU": "normalised"})
    notes = compare([a, other]).notes
    assert notes[0].startswith("IoU: the files state different conventions")
    assert "a: “at 0.5; per image”; b: “normalised”" in notes[0]
    assert compare([method("a", {"CAMO": LOW})]).notes == [
        "IoU, MAE: convention not stated in the files"
    ]


def test_curves_and_who_has_none():
    curves = {"threshold": [1, 0], "Fm": [0, 1]}
    pair = [method("a", {"CAMO": LOW}, curves=curves), method("b", {"CAMO": HIGH})]
    found = compare(pair)
    assert found.curves == {"a": {"CAMO": curves}} and found.without_curves == ["b on CAMO"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": ["iou"]}, "no metric 'iou'; did you mean 'IoU'"),
        ({"datasets": ["CAM0"]}, "no data set 'CAM0'; did you mean 'CAMO'"),
        ({"baseline": "c"}, "no baseline 'c'"),
    ],
)
def test_mistakes_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        compare([method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH})], **given)


IMAGES = np.random.default_rng(9).uniform(0.4, 0.7, 120)


def seeds(name, base, shifts, noise=0.1, dataset="CAMO"):
    """Runs of one method: values of the same 120 images, ``base`` and shifted for each seed.

    Differences are as often above as below their mean, so that nothing is skewed.
    """
    random = np.random.default_rng(len(name))
    half = random.normal(0, noise, 60)
    values = base + np.concatenate([half, -half])
    return [method(name, {dataset: {"IoU": values + s, "MAE": 0.3 - values - s}}) for s in shifts]


PLAIN = seeds("plain", IMAGES, (0, 0.004, -0.003), noise=0)
ROUTER = seeds("router", IMAGES, (0.05, 0.055, 0.048))
OTHER = method("o", {"CAMO": {"IoU": IMAGES + 0.2, "MAE": IMAGES}})


@pytest.mark.parametrize(
    ("shifts", "noise", "over_images", "over_runs", "verdict"),
    [
        ((0.05, 0.055, 0.048), 0.1, True, True, "better"),
        ((-0.05, -0.045, -0.052), 0.1, True, True, "worse"),
        ((0.09, 0.0, 0.045), 0.1, True, False, "undecided"),
        ((0.01, 0.0145, 0.0075), 0.2, False, True, "undecided"),
        ((0.02, -0.02, 0.001), 0.2, False, False, "undecided"),
    ],
)
def test_runs_have_an_interval_over_images_and_one_over_runs(
    shifts, noise, over_images, over_runs, verdict
):
    ours = seeds("router", IMAGES, shifts, noise)
    found = compare([PLAIN[0], ours[0], ours[1], PLAIN[1], ours[2], PLAIN[2]])
    assert [(row["method"], row["runs"]) for row in found.rows] == [("plain", 3), ("router", 3)]
    scores = {
        key: [[run.rows["CAMO"][key] for run in runs] for runs in (ours, PLAIN)]
        for key in ("IoU", "MAE")
    }
    for key, row in zip(("IoU", "MAE"), found.differences, strict=True):
        assert found.rows[1][key] == pytest.approx(np.mean(scores[key][0]))
        assert found.rows[1][f"{key} sd"] == pytest.approx(np.std(scores[key][0], ddof=1))
        each = [
            np.mean([[v[key] for v in r.rows["CAMO"]["images"].values()] for r in runs], axis=0)
            for runs in (ours, PLAIN)
        ]
        images = stats.ttest_1samp(each[0] - each[1], 0).confidence_interval()
        assert (row["low"], row["high"]) == pytest.approx(tuple(images), rel=1e-4)
        runs = stats.ttest_rel(*scores[key]).confidence_interval()
        assert (row["runs_low"], row["runs_high"]) == pytest.approx(tuple(runs))
        assert row["difference"] == pytest.approx(np.mean(scores[key][0]) - np.mean(scores[key][1]))
        assert (row["low"] * row["high"] > 0, runs.low * runs.high > 0) == (over_images, over_runs)
        assert row["verdict"] == verdict
    assert any("both 95 % intervals exclude zero" in caveat for caveat in found.caveats)
    assert not any("not another training seed" in caveat for caveat in found.caveats)


def test_other_numbers_of_runs():
    single = method("paper", {"CAMO": {"IoU": IMAGES - 0.1, "MAE": IMAGES}})
    found = compare([*ROUTER, *PLAIN[:2], single], metrics=["IoU"])
    assert [row["runs"] for row in found.rows] == [3, 2, 1]
    assert math.isnan(found.rows[2]["IoU sd"])
    plain, paper = found.differences
    scores = [[run.rows["CAMO"]["IoU"] for run in runs] for runs in (PLAIN[:2], ROUTER)]
    theirs = stats.ttest_ind(*scores, equal_var=False).confidence_interval()
    assert (plain["runs_low"], plain["runs_high"]) == pytest.approx(tuple(theirs), rel=1e-6)
    assert paper["high"] < 0 and math.isnan(paper["runs_low"])
    assert paper["verdict"] == "undecided"
    assert "| paper | 120 | 1 |" in comparison_table(found).markdown()


def test_runs_of_one_method_that_do_not_fit():
    fewer = method("plain", {"CAMO": {"IoU": IMAGES[1:]}})
    words = r"'plain' \(plain.json\) and 'plain' \(plain.json\) were not scored on the same images"
    with pytest.raises(ValueError, match=words):
        compare([PLAIN[0], fewer])
    more = method("plain", {"CAMO": {"IoU": IMAGES}, "NC4K": LOW})
    with pytest.raises(ValueError, match=r"plain\.json has no result on NC4K, but other"):
        compare([PLAIN[0], more])
    assert compare([PLAIN[0], more], datasets=["CAMO"], metrics=["IoU"]).rows[0]["runs"] == 2
    said = [method("a", {"CAMO": LOW}, conventions={"IoU": text}) for text in ("one", "other", "")]
    with pytest.raises(
        ValueError, match=r"Runs of 'a' state different conventions of IoU .*“other”"
    ):
        compare(said)
    assert compare(said, metrics=["MAE"]).rows[0]["runs"] == 3
    assert compare(said[1:]).notes[1:] == [
        "IoU: other",
        "MAE: convention not stated in the files",
    ]


def test_files_of_one_name_are_runs(tmp_path):
    def images(iou):
        values = [iou, iou / 2, iou / 4]
        return {str(i): {"IoU": value} for i, value in enumerate(values)}, float(np.mean(values))

    def saved(name, iou, sources=("mixture", "sinet")):
        rows = {}
        for shift, source in enumerate(sources):
            each, mean = images(iou - 0.1 * shift)
            rows[source] = {"IoU": mean, "n": 3, "images": each}
        return save_json(tmp_path / name, {"checkpoint": "best.pth", "table": {"CAMO": rows}})

    files = [saved(f"{i}.json", iou) for i, iou in enumerate((0.8, 0.9, 0.6, 0.7))]
    names = ["router", "router", "plain", "plain"]
    found = compare(load_methods(files, names=names, sources=["all"]), baseline="plain/sinet")
    methods = ["router/mixture", "router/sinet", "plain/mixture", "plain/sinet"]
    assert [(row["method"], row["runs"]) for row in found.rows] == [(name, 2) for name in methods]
    assert found.rows[1]["IoU"] == pytest.approx((0.7 + 0.8) / 2 * 7 / 12)
    assert found.rows[1]["file"] == f"{files[0]}, {files[1]}"
    assert found.baseline == "plain/sinet" and len(found.differences) == 3

    lone = saved("lone.json", 0.5, sources=("mixture",))
    with pytest.raises(
        ValueError, match=r"'a' have different sources: mixture, sinet in .* --sources"
    ):
        load_methods([files[0], lone], names=["a", "a"], sources=["all"])
    assert len(load_methods([files[0], lone], names=["a", "a"])) == 2
    with pytest.raises(ValueError, match=r"0\.json is given twice as a run of 'a'"):
        load_methods([files[0], files[1], files[0]], names=["a", "a", "a"])
    with pytest.raises(ValueError, match="Two methods would be called 'a/mixture'"):
        load_methods([lone, files[0]], names=["a/mixture", "a"], sources=["all"])
    maps = [save_json(tmp_path / f"m{i}.json", row(0.1 * i, method=f"maps {i}")) for i in (1, 2)]
    assert [m.name for m in load_methods(maps, names=["maps", "maps"])] == ["maps", "maps"]
    with pytest.raises(ValueError, match=r"different sources: mixture in .*, maps 1 in"):
        load_methods([files[0], maps[0]], names=["a", "a"])


def test_curves_of_runs_are_averaged():
    def runs(*curves):
        return [method("a", {"CAMO": LOW}, **({"curves": c} if c else {})) for c in curves]

    one, two = ({"threshold": [1, 0], "Fm": [0, value]} for value in (0.5, 1))
    found = compare(runs(one, two))
    assert found.curves == {"a": {"CAMO": {"threshold": [1, 0], "Fm": [0, 0.75]}}}
    for other in (None, {"threshold": [1, 0.5], "Fm": [0, 1]}, {"threshold": [1, 0]}):
        found = compare(runs(one, other))
        assert not found.curves and found.without_curves == ["a on CAMO"]


def test_tables_of_runs(tmp_path):
    found = compare([*PLAIN, *ROUTER, OTHER])
    files = {file.name: file.read_text() for file in write_comparison(found, tmp_path)}
    mean, spread = np.mean(IMAGES), np.std([0, 0.004, -0.003], ddof=1)
    cell = f"{mean + 0.001 / 3:.4f} ± {spread:.4f}"
    markdown = files["compare.md"]
    assert "| data set | method | n | runs | IoU ↑ | MAE ↓ |" in markdown
    assert f"| CAMO | plain | 120 | 3 | {cell} |" in markdown
    assert "± 0.0036** |" in markdown
    assert (
        "- mean ± sample standard deviation over runs (how many: plain 3, router 3, o 1)"
        in markdown
    )
    latex = cell.replace("±", r"$\pm$")
    assert f"{{plain}} & {latex} & " in files["compare.tex"]
    rows = list(csv.DictReader(io.StringIO(files["compare.csv"])))
    assert float(rows[0]["IoU sd"]) == pytest.approx(spread) and rows[0]["runs"] == "3"
    assert rows[2]["IoU sd"] == "" and rows[2]["runs"] == "1"

    assert "| difference | 95 % over images | 95 % over runs | verdict |" in files["differences.md"]
    difference = found.differences[0]
    ends = [f"[{difference[k + 'low']:+.4f}, {difference[k + 'high']:+.4f}]" for k in ("", "runs_")]
    assert f"| **+0.0507** | {ends[0]} | {ends[1]} | better |" in files["differences.md"]
    lines = files["differences.tex"].splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith(r"{router} & $\mathbf{+0.0507}$"))
    assert lines[i + 1].startswith(rf"\scriptsize over images & {{\scriptsize ${ends[0]}$}} &")
    assert lines[i + 2].startswith(rf"\scriptsize over runs & {{\scriptsize ${ends[1]}$}} &")
    assert lines[i + 5] == r"\scriptsize over runs & - & - \\"
    assert "both intervals exclude zero" in files["differences.tex"]
    rows = list(csv.DictReader(io.StringIO(files["differences.csv"])))
    assert float(rows[0]["runs_low"]) == difference["runs_low"] and rows[2]["runs_low"] == ""
    console = Console(file=io.StringIO(), width=200)
    print_comparison(found, console=console)
    assert cell in console.file.getvalue() and ends[1] in console.file.getvalue()


def test_one_run_each_is_told_as_ever(tmp_path):
    found = compare([PLAIN[0], OTHER])
    assert "runs" not in found.rows[0] and "runs_low" not in found.differences[0]
    files = {file.name: file.read_text() for file in write_comparison(found, tmp_path)}
    assert files["compare.csv"].startswith("dataset,method,source,file,n,IoU,MAE\n")
    head = "dataset,method,baseline,metric,n,difference,low,high,verdict\n"
    assert files["differences.csv"].startswith(head)
    assert "| 95 % interval | verdict |" in files["differences.md"]
    assert not any("runs" in text or "±" in text for text in files.values())


@pytest.fixture
def comparison():
    def row(dataset, method, iou, mae):
        names = {
            "dataset": dataset,
            "method": method,
            "source": "mixture",
            "file": f"{method}.json",
        }
        return names | {"n": 40, "IoU": iou, "MAE": mae}

    def difference(metric, value, low, high, verdict):
        names = {"dataset": "CAMO", "method": "b|c", "baseline": "a_1", "metric": metric, "n": 40}
        return names | {"difference": value, "low": low, "high": high, "verdict": verdict}

    return Comparison(
        metrics=["IoU", "MAE"],
        rows=[
            row("CAMO", "a_1", 0.5, 0.125),
            row("CAMO", "b|c", 0.75, 0.25),
            row("CAMO", "[d] & co", 1 / 3, NAN),
            row("NC4K", "a_1", 0.5, 0.125),
        ],
        ranks={(1, "IoU"): 1, (0, "IoU"): 2, (0, "MAE"): 1, (1, "MAE"): 2},
        baseline="a_1",
        differences=[
            difference("IoU", 0.25, 0.2, 0.3, "better"),
            difference("MAE", 0.125, -0.01, 0.2, "undecided"),
        ],
        notes=["IoU (β² 0.3, 100 % > 50 %): per image"],
        caveats=["no interval for maxFm"],
        curves={},
        without_curves=[],
    )


def test_markdown(comparison, tmp_path):
    files = write_comparison(comparison, tmp_path / "new")
    lines = files[0].read_text().splitlines()
    assert lines[0] == "| data set | method | n | IoU ↑ | MAE ↓ |"
    assert lines[2] == "| CAMO | a_1 | 40 | 0.5000 | **0.1250** |"
    assert lines[3] == "| CAMO | b\\|c | 40 | **0.7500** | 0.2500 |"
    assert lines[4] == "| CAMO | [d] & co | 40 | 0.3333 | - |"
    assert lines[-1] == "- IoU (β² 0.3, 100 % > 50 %): per image"
    text = files[3].read_text()
    assert "| b\\|c | IoU | 40 | **+0.2500** | [+0.2000, +0.3000] | better |" in text
    assert "| b\\|c | MAE | 40 | +0.1250 | [-0.0100, +0.2000] | undecided |" in text
    assert text.endswith("- no interval for maxFm\n")
    comparison.differences[0] |= {"low": NAN, "high": NAN, "verdict": "undecided"}
    assert "| +0.2500 | - | undecided |" in difference_table(comparison).markdown()
    comparison.differences.clear()
    said = write_comparison(comparison, tmp_path / "none")[3].read_text()
    assert said == "No differences.\n\n- no interval for maxFm\n"


def test_latex(comparison):
    lines = to_latex(comparison).splitlines()
    assert lines.count(r"\begin{tabular}{lrr}") == 2
    assert lines.count(r"Method & IoU $\uparrow$ & MAE $\downarrow$ \\") == 2
    assert sum(line.startswith(r"\caption{CAMO ($n=40$). ") for line in lines) == 1
    assert r"{a\_1} & \underline{0.5000} & \textbf{0.1250} \\" in lines
    assert r"{b$|$c} & \textbf{0.7500} & \underline{0.2500} \\" in lines
    assert r"{[d] \& co} & 0.3333 & - \\" in lines
    assert any(
        r"IoU (\ensuremath{\beta}$^2$ 0.3, 100 \% $>$ 50 \%): per image." in x for x in lines
    )
    body = "\n".join(line for line in lines if not line.startswith("%"))
    assert body.count("{") == body.count("}") and body.isascii()


def test_latex_of_differences(comparison):
    lines = differences_to_latex(comparison).splitlines()
    (caption,) = [line for line in lines if line.startswith(r"\caption{CAMO ($n=40$). ")]
    assert r"Differences to {a\_1}; " in caption
    i = lines.index(r"{b$|$c} & $\mathbf{+0.2500}$ & $+0.1250$ \\")
    ends = [r"{\scriptsize $[+0.2000, +0.3000]$}", r"{\scriptsize $[-0.0100, +0.2000]$}"]
    assert lines[i + 1] == " & ".join(["", *ends]) + r" \\"
    assert any("no interval for maxFm." in line for line in lines)
    comparison.differences[1]["n"] = 38  # of the others a value is missing
    (line,) = [x for x in differences_to_latex(comparison).splitlines() if "n=38" in x]
    assert line == " & ".join(["", ends[0], ends[1].replace("]", r"]\ n=38")]) + r" \\"
    comparison.differences[1] |= {"low": NAN, "high": NAN}
    other = comparison.differences[0] | {"method": "[d] & co"}
    comparison.differences.append(other)  # which has no MAE
    text = differences_to_latex(comparison)
    assert f" & {ends[0]} & - \\\\\n" in text
    assert r"{[d] \& co} & $\mathbf{+0.2500}$ & - \\" in text and f" & {ends[0]} &  \\\\\n" in text
    comparison.differences.clear()
    assert differences_to_latex(comparison) == "% No differences.\n% no interval for maxFm\n"


NAMES = (
    "[12] SINet",
    "*ours",
    "a_b & c%",
    "$x^2$",
    r"C:\maps\{a}",
    "~#^",
    "β-Net αΔ",
    "Gr\u00e9mlin",
)


@pytest.fixture
def standard():
    """The standard protocol: nine measures on four data sets, and names that LaTeX trips over."""
    random = np.random.default_rng(0)

    def values(n):
        return {key: random.uniform(0.3, 0.9, n) for key in MEASURES}

    sets = {"CHAMELEON": 76, "CAMO": 250, "COD10K": 40, "[nc] 4K_%": 41}
    return compare([method(name, {d: values(n) for d, n in sets.items()}) for name in NAMES])


def test_no_row_of_a_latex_table_begins_with_what_a_command_would_take(standard):
    """A line break takes a star or a bracket that follows, and so do the rules of booktabs."""
    for text in (to_latex(standard), differences_to_latex(standard)):
        assert not re.search(r"(\\\\|rule)\s*[\[*]", text)
        assert text.count("begin{table*}") == 4 and "resizebox" in text
        for columns in re.findall(r"begin\{tabular\}\{(l.*)\}", text):
            assert len(columns) == 1 + len(MEASURES)


@pytest.mark.parametrize("form", ["", "twocolumn"])
def test_latex_compiles_and_fits_the_page(standard, form, tmp_path):
    engine = next(filter(None, map(shutil.which, ("pdflatex", "tectonic", "xelatex"))), None)
    if engine is None:
        pytest.skip("no TeX engine")
    (tmp_path / "page.tex").write_text(
        rf"\documentclass[{form}]{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}"
        + to_latex(standard)
        + differences_to_latex(standard)
        + "".join(
            write(compare([*PLAIN, *ROUTER, OTHER])) for write in (to_latex, differences_to_latex)
        )
        + r"\end{document}"
    )
    options = [] if engine.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [engine, *options, "page.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "too large" not in done.stdout


def test_latex_escapes_every_special_character():
    assert latex_escape("50 % of a_b & {c} #1 $x$") == r"50 \% of a\_b \& \{c\} \#1 \$x\$"
    assert latex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert latex_escape("α·β² ≥ “x”") == (
        r"\ensuremath{\alpha}$\cdot$\ensuremath{\beta}$^2$ $\geq$ ``x''"
    )
    assert latex_escape("ΑΔ\tx\n") == r"A\ensuremath{\Delta} x"


def test_files_are_whole_and_old_ones_kept(comparison, tmp_path):
    for _ in range(2):
        files = write_comparison(comparison, tmp_path / "new")
    names = [file.name for file in files]
    assert names == [
        "compare.md",
        "compare.tex",
        "compare.csv",
        "differences.md",
        "differences.tex",
        "differences.csv",
    ]
    assert len(list((tmp_path / "new").iterdir())) == 12
    rows = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert rows[2]["method"] == "[d] & co" and rows[2]["MAE"] == ""
    assert float(rows[2]["IoU"]) == 1 / 3 and rows[0]["file"] == "a_1.json"
    rows = list(csv.DictReader(io.StringIO(files[5].read_text())))
    assert rows[1]["verdict"] == "undecided" and float(rows[1]["low"]) == -0.01


def test_terminal(comparison):
    console = Console(file=io.StringIO(), width=200)
    print_comparison(comparison, console=console)
    text = console.file.getvalue()
    assert "[d] & co" in text and "0.3333" in text and "[+0.2000, +0.3000]" in text
    assert "no interval for maxFm" in text

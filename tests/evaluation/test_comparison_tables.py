import csv
import io

import pytest
from rich.console import Console

from codmoe.evaluation.compare import (
    Comparison,
    differences_to_markdown,
    latex_escape,
    print_comparison,
    to_latex,
    to_markdown,
    write_comparison,
)

NAN = float("nan")


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


def test_markdown(comparison):
    lines = to_markdown(comparison).splitlines()
    assert lines[0] == "| data set | method | n | IoU ↑ | MAE ↓ |"
    assert lines[2] == "| CAMO | a_1 | 40 | 0.5000 | **0.1250** |"
    assert lines[3] == "| CAMO | b\\|c | 40 | **0.7500** | 0.2500 |"
    assert lines[4] == "| CAMO | [d] & co | 40 | 0.3333 | - |"
    assert lines[-1] == "- IoU (β² 0.3, 100 % > 50 %): per image"


def test_differences(comparison):
    text = differences_to_markdown(comparison)
    assert "| b\\|c | IoU | 40 | **+0.2500** | [+0.2000, +0.3000] | better |" in text
    assert "| b\\|c | MAE | 40 | +0.1250 | [-0.0100, +0.2000] | undecided |" in text
    assert text.endswith("- no interval for maxFm\n")
    comparison.differences[0] |= {"low": NAN, "high": NAN, "verdict": "undecided"}
    assert "| +0.2500 | - | undecided |" in differences_to_markdown(comparison)
    comparison.differences.clear()
    assert differences_to_markdown(comparison).startswith("No differences.")


def test_latex(comparison):
    lines = to_latex(comparison).splitlines()
    assert r"\begin{tabular}{lrrrr}" in lines
    assert r" & \multicolumn{2}{c}{CAMO ($n=40$)} & \multicolumn{2}{c}{NC4K ($n=40$)} \\" in lines
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in lines
    assert r"a\_1 & \underline{0.5000} & \textbf{0.1250} & 0.5000 & 0.1250 \\" in lines
    assert r"b$|$c & \textbf{0.7500} & \underline{0.2500} & - & - \\" in lines
    assert r"[d] \& co & 0.3333 & - & - & - \\" in lines
    assert r"IoU ($\beta$$^2$ 0.3, 100 \% $>$ 50 \%): per image." in lines
    body = "\n".join(line for line in lines if not line.startswith("%"))
    assert body.count("{") == body.count("}") and body.isascii()
    for number in range(lines.index(r"\midrule") + 1, lines.index(r"\bottomrule")):
        assert lines[number].replace(r"\&", "").count("&") == 4


def test_latex_escapes_every_special_character():
    assert latex_escape("50 % of a_b & {c} #1 $x$") == r"50 \% of a\_b \& \{c\} \#1 \$x\$"
    assert latex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert latex_escape("α·β² ≥ “x”") == r"$\alpha$$\cdot$$\beta$$^2$ $\geq$ ``x''"


def test_files_are_whole_and_old_ones_kept(comparison, tmp_path):
    for _ in range(2):
        files = write_comparison(comparison, tmp_path / "new")
    names = [file.name for file in files]
    assert names == [
        "compare.md",
        "compare.tex",
        "compare.csv",
        "differences.md",
        "differences.csv",
    ]
    assert len(list((tmp_path / "new").iterdir())) == 10
    rows = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert rows[2]["method"] == "[d] & co" and rows[2]["MAE"] == ""
    assert float(rows[2]["IoU"]) == 1 / 3 and rows[0]["file"] == "a_1.json"
    rows = list(csv.DictReader(io.StringIO(files[4].read_text())))
    assert rows[1]["verdict"] == "undecided" and float(rows[1]["low"]) == -0.01


def test_terminal(comparison):
    console = Console(file=io.StringIO(), width=200)
    print_comparison(comparison, console=console)
    text = console.file.getvalue()
    assert "[d] & co" in text and "0.3333" in text and "[+0.2000, +0.3000]" in text
    assert "no interval for maxFm" in text


def test_figures_are_whole_in_a_log_file(comparison, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    print_comparison(comparison)
    assert "│ 40 │ 0.3333 │      - │" in capsys.readouterr().out

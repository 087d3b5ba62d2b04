import io

import pytest
from rich.console import Console

from codmoe.evaluation.attributes import breakdown
from codmoe.evaluation.tables import breakdown_table, ranks, result_rows, result_table

TABLE = {
    "CAMO": {
        "sinet": {"Sm": 0.8, "MAE": 0.05, "IoU": 0.70001, "n": 250, "images": {}},
        "mixture": {"Sm": 0.9, "MAE": 0.04, "IoU": 0.7, "n": 250, "images": {}},
        "oracle": {"Sm": 0.95, "MAE": 0.03, "IoU": 0.8, "n": 250, "images": {}},
    },
    "NC4K": {"mixture": {"Sm": 0.85, "MAE": float("nan"), "IoU": 0.6, "n": 4121, "images": {}}},
}


@pytest.fixture
def by_area():
    ious = {
        "sinet": {"a": 0.5, "b": 0.25},
        "pranet": {"a": 0.5, "b": 0.75},
        "mixture": {"a": 0.9, "b": 0.9},
    }
    return breakdown(ious, {"a": {"area": 0.001}, "b": {"area": 0.5}})


def test_rows():
    rows = result_rows(TABLE, ["IoU", "MAE"], datasets=["CAMO"], sources=["mixture", "sinet"])
    assert rows[0] == {"dataset": "CAMO", "source": "mixture", "n": 250, "IoU": 0.7, "MAE": 0.04}
    assert len(rows) == 2
    assert list(result_rows(TABLE)[0]) == ["dataset", "source", "n", "IoU", "Sm", "MAE"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": ["iou"]}, "no metric 'iou'; did you mean 'IoU'"),
        ({"datasets": ["CAM0"]}, "no data set 'CAM0'; did you mean 'CAMO'"),
        ({"datasets": ["CAMO"], "sources": ["sinnet"]}, "did you mean 'sinet'"),
    ],
)
def test_mistakes_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        result_rows(TABLE, **given)


def test_there_must_be_rows_of_the_same_columns():
    with pytest.raises(ValueError, match="the table has no rows"):
        result_table([])
    with pytest.raises(ValueError, match="the same columns; name them with `metrics=`"):
        result_table([*result_rows(TABLE, ["IoU"]), *result_rows(TABLE, ["MAE"])])
    with pytest.raises(ValueError, match="it has no rows"):
        breakdown_table([])


def test_markdown():
    lines = result_table(result_rows(TABLE, ["Sm", "MAE", "IoU"])).markdown().splitlines()
    assert lines[0] == "| data set | source | n | Sm | MAE | IoU |"
    assert lines[2] == "| CAMO | sinet | 250 | 0.8000 | 0.0500 | **0.7000** |"
    assert lines[3] == "| CAMO | mixture | 250 | **0.9000** | **0.0400** | **0.7000** |"
    assert lines[4] == "| CAMO | oracle | 250 | 0.9500 | 0.0300 | 0.8000 |"
    assert lines[5] == "| NC4K | mixture | 4121 | 0.8500 | - | 0.6000 |"
    # One line for the columns of each convention: S-measure and MAE are of the same map.
    notes = lines[7:]
    assert len(notes) == 3 and notes[2].startswith("- oracle: ")
    assert notes[0].startswith("- Sm (S-measure") and "MAE (mean absolute error" in notes[0]
    assert notes[1].startswith("- IoU (") and "> 0.5, not normalised" in notes[1]


def test_a_set_that_was_trained_on_is_told_first():
    shown = result_table(result_rows(TABLE, ["IoU"]), None, {"CAMO": 12, "NC4K": 0})
    assert shown.notes[0].startswith("CAMO: the weights were TRAINED ON 12 of these 250 images")
    assert sum("TRAINED" in note for note in shown.notes) == 1


def test_markdown_of_a_breakdown(by_area):
    lines = breakdown_table(by_area).markdown().splitlines()
    assert lines[0] == "| attribute | bin | n | sinet | pranet | mixture | best expert |"
    assert lines[2] == (
        "| area | tiny (< 1 %) | 1 | **0.5000** | **0.5000** | 0.9000 | sinet = pranet |"
    )
    assert lines[3] == "| area | large (≥ 15 %) | 1 | 0.2500 | **0.7500** | 0.9000 | pranet |"
    assert lines[5].startswith("- mean IoU")


def test_terminal(by_area):
    console = Console(file=io.StringIO(), width=200)
    result_table(result_rows(TABLE, ["IoU"]), "runs of [v2]").print(console)
    breakdown_table(by_area, "who wins").print(console)
    text = console.file.getvalue()
    assert "runs of [v2]" in text and "│ 0.8000 │" in text and "│ 4121 │" in text
    note = next(line for line in text.splitlines() if line.startswith("IoU ("))
    assert "probability > 0.5, not normalised" in note
    assert "who wins" in text and "│ sinet = pranet │" in text and "mean IoU" in text


def test_ranks_are_of_the_figures_as_printed():
    values = {"a": 0.50001, "b": 0.50002, "c": 0.4, "d": 0.3}
    rows = [{"dataset": "x", "source": name, "IoU": value} for name, value in values.items()]
    rows.append({"dataset": "x", "source": "oracle", "IoU": 0.9})
    rows.append({"dataset": "y", "source": "a", "IoU": 0.9})
    assert ranks(rows, ["IoU"]) == {(0, "IoU"): 1, (1, "IoU"): 1, (2, "IoU"): 2}
    rows[0]["IoU"] = float("nan")
    assert ranks(rows[:2], ["IoU"]) == {}

import io

import pytest
from rich.console import Console

from codmoe.evaluation.attributes import breakdown
from codmoe.evaluation.tables import breakdown_to_markdown, print_breakdown


@pytest.fixture
def rows():
    ious = {
        "sinet": {"a": 0.5, "b": 0.25},
        "pranet": {"a": 0.5, "b": 0.75},
        "mixture": {"a": 0.9, "b": 0.9},
    }
    return breakdown(ious, {"a": {"area": 0.001}, "b": {"area": 0.5}})


def test_markdown(rows):
    lines = breakdown_to_markdown(rows).splitlines()
    assert lines[0] == "| attribute | bin | n | sinet | pranet | mixture | best expert |"
    assert lines[2] == (
        "| area | tiny (< 1 %) | 1 | **0.5000** | **0.5000** | 0.9000 | sinet = pranet |"
    )
    assert lines[3] == "| area | large (≥ 15 %) | 1 | 0.2500 | **0.7500** | 0.9000 | pranet |"
    assert lines[5].startswith("- mean IoU")
    with pytest.raises(ValueError, match="no rows"):
        breakdown_to_markdown([])


def test_terminal(rows):
    console = Console(file=io.StringIO(), width=200)
    print_breakdown(rows, title="who wins", console=console)
    text = console.file.getvalue()
    assert "who wins" in text and "│ sinet = pranet │" in text and "mean IoU" in text


def test_figures_are_whole_in_a_log_file(rows, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    print_breakdown(rows)
    assert "│ 1 │ 0.2500 │ 0.7500 │  0.9000 │ pranet" in capsys.readouterr().out

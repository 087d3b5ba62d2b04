import io

from rich.console import Console
from rich.text import Text

from codmoe.console import Bold, TextTable, grouped

HEADS = ["name", "n", "IoU", "which"]
ROWS = [["[v2]", "3", "0.5", "a"], ["[v2]", "4", Bold("0.75"), "b|c"], ["z", "5", "-", ":key:"]]
TABLE = TextTable(HEADS, grouped(ROWS), words=(0, -1), notes=["IoU: at 0.5"])


def test_markup_is_text_in_titles_heads_cells_and_notes():
    cells = [["[/]", "[bold]y[/bold]"]]
    text = TextTable(["[red]", "x"], cells, title="runs of [v2]", notes=["[dim] is text"]).text()
    for words in ("runs of [v2]", "[red]", "[/]", "[bold]y[/bold]", "[dim] is text"):
        assert words in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_columns_are_set_and_groups_have_a_line():
    lines = TABLE.text().splitlines()
    assert lines[3] == "│ [v2] │ 3 │  0.5 │ a     │" and lines[6] == "│ z    │ 5 │    - │ :key: │"
    assert lines[5].startswith("├") and lines[8:] == ["IoU: at 0.5"]
    assert grouped([]) == []


def test_bold_is_bold():
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    TABLE.print(console)
    assert "\x1b[1m0.75" in console.file.getvalue()


def test_figures_are_whole_in_a_log_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    TABLE.print()
    assert "│ [v2] │ 4 │ 0.75 │ b|c   │" in capsys.readouterr().out


def test_prose_wraps(capsys):
    cells = [[Text("note"), "word " * 60], ["b", "c"]]
    TextTable(["", "advice"], cells, words=(0, 1), wrap=True).print()
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {120} and len(lines) == 9


def test_markdown():
    assert TABLE.markdown().splitlines() == [
        "| name | n | IoU | which |",
        "| :--- | ---: | ---: | :--- |",
        "| [v2] | 3 | 0.5 | a |",
        "| [v2] | 4 | **0.75** | b\\|c |",
        "| z | 5 | - | :key: |",
        "",
        "- IoU: at 0.5",
    ]
    assert TextTable(["x"], [["y"]]).markdown() == "| x |\n| :--- |\n| y |\n"

import json

from report_run import scalars, write_log

from codmoe.visualization.report.data import read_training


def test_epochs_are_the_axis_of_both(tmp_path):
    write_log(tmp_path, "20260101_000000", scalars(3))
    found = read_training(tmp_path)
    assert [row["x"] for row in found.train] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert [row["x"] for row in found.val] == [1, 2, 3] and found.unit == "epoch"
    assert found.opening["seed"] == "7" and found.opening["device"] == "Some GPU"


def test_an_interval_that_does_not_reach_the_end_of_an_epoch(tmp_path):
    write_log(tmp_path, "20260101_000000", scalars(3, steps=13))
    found = read_training(tmp_path).train
    assert [round(row["x"] * 13) for row in found] == [5, 10, 18, 23, 31, 36]


def test_a_resumed_run_goes_on_and_what_was_trained_again_counts_once(tmp_path):
    first = scalars(3, level=0.1)
    write_log(tmp_path, "20260101_000000", first)
    with (tmp_path / "20260101_000000/vis_data/scalars.json").open("a") as file:
        file.write('{"lr": 0.1, "los')  # killed while it wrote
    write_log(tmp_path, "20260101_010000", scalars(4, start=2, steps=20, level=0.2))
    write_log(tmp_path, "20260101_020000", scalars(5, start=4, level=0.3))
    found = read_training(tmp_path)
    xs = [row["x"] for row in found.train]
    assert found.resumed == 2 and xs == sorted(xs) and xs[-1] == 5
    assert [round(row["IoU"], 2) for row in found.val] == [0.11, 0.12, 0.23, 0.24, 0.35]
    assert len(found.folders) == 3


def test_an_earlier_run_is_left_out_with_its_warnings(tmp_path):
    warning = "2026/01/02 03:04:06 - mmengine - WARNING - {}\nsecond line\n"
    write_log(tmp_path, "20260101_000000", scalars(9, level=0.1), warning.format("old"))
    write_log(tmp_path, "20260101_010000", scalars(2, level=0.5), warning.format("new"))
    (tmp_path / "earlier-20260101-010000").mkdir()
    test_only = tmp_path / "20260101_020000"
    test_only.mkdir()
    (test_only / "x.log").write_text(warning.format("test") * 2)
    found = read_training(tmp_path)
    assert [round(row["IoU"], 2) for row in found.val] == [0.51, 0.52] and found.resumed == 0
    assert found.warnings == {"new\nsecond line": 1, "test\nsecond line": 2}


def test_a_loop_of_steps(tmp_path):
    rows = [{"lr": 0.1, "loss": 1.0, "step": i, "iter": i} for i in (50, 100)]
    write_log(tmp_path, "20260101_000000", [*rows, {"IoU": 0.3, "step": 100}])
    more = [{"lr": 0.1, "loss": 1.0, "step": i, "iter": i} for i in (150, 200)]
    write_log(tmp_path, "20260101_010000", more)
    found = read_training(tmp_path)
    assert [row["x"] for row in found.train] == [50, 100, 150, 200] and found.unit == "step"
    assert found.val[0]["x"] == 100 and found.resumed == 1


def test_nothing_there(tmp_path):
    found = read_training(tmp_path)
    assert not found.train and found.opening == {} and found.config is None
    (tmp_path / "20260101_000000").mkdir()
    assert json.dumps(read_training(tmp_path).warnings) == "{}"

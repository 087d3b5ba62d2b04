import math

import pytest

from codmoe.evaluation.result_files import load_methods
from codmoe.evaluation.tables import save_json


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
    for wrong in (["A"], ["A", "A"]):
        with pytest.raises(ValueError, match="one name of its own"):
            load_methods(files[:2], names=wrong)


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

import base64
import itertools
import json

import pytest
from report_run import PANELS, STEMS, write_run

from codmoe.visualization.report import images
from codmoe.visualization.report.data import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("images") / "run")[0]


def test_columns_are_those_of_the_result(folder):
    found = images.image_data(load_run(folder))
    table = json.loads((folder / "ensemble.json").read_text())["table"]["Animals"]
    (one,) = found["datasets"]
    assert one["stems"] == STEMS and one["panels"] == PANELS
    assert found["measures"][0] == "IoU" and found["lower"] == ["MAE"]
    for source, measures in one["values"].items():
        for key, column in measures.items():
            values = [image[key] for image in table[source]["images"].values()]
            assert column == [pytest.approx(value, abs=5e-5) for value in values]
    assert one["weights"]["sinet"] == [0.0] * 30 + [0.8] * 10
    assert one["attributes"] == {"kind": (["big", "small"], [0] * 30 + [1] * 10)}
    first = base64.b64decode(one["pictures"][0])
    assert first == (folder / "ensemble_pictures" / "0.webp").read_bytes()
    json.dumps(found, allow_nan=False)


def test_of_too_many_pictures_the_ends_and_an_even_spread_stay(folder, monkeypatch):
    run = load_run(folder)
    size = (folder / "ensemble_pictures" / "0.webp").stat().st_size
    monkeypatch.setattr(images, "PICTURES_MB", 10.5 * size / 2**20)
    (one,) = images.image_data(run)["datasets"]
    ious = one["values"]["mixture"]["IoU"]
    ranked = sorted(range(40), key=lambda i: ious[i])
    places = [place for place, i in enumerate(ranked) if one["pictures"][i]]
    assert len(places) == 10 and places[0] == 0 and places[-1] == 39
    assert max(b - a for a, b in itertools.pairwise(places)) <= 5


def test_only_pictures_are_taken_into_the_page(folder):
    run = load_run(folder)
    told = run.ensemble["pictures"]
    told["files"]["Animals"][STEMS[0]] = "../table.json"
    told["files"]["Animals"][STEMS[1]] = "../../run/ensemble_pictures/1.webp"
    (one,) = images.image_data(run)["datasets"]
    assert one["pictures"][0] is None and one["pictures"][1]


def test_a_result_without_pictures_weights_or_attributes(folder):
    run = load_run(folder)
    for key in ("pictures", "routing_weights", "attributes"):
        run.ensemble.pop(key)
    (one,) = images.image_data(run)["datasets"]
    assert one["pictures"] == [None] * 40 and one["weights"] == {} == one["attributes"]
    run.ensemble["table"] = {"Animals": {"mixture": {"n": 3}}}
    assert images.image_data(run) == {}

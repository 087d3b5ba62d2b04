"""The model card: what stands between its marks comes from result files."""

import json

import pytest
from miniature import call

from projects.small_ensemble.card import BEGIN, END, fill_card

CARD = "projects.small_ensemble.card"
METRICS = dict(Dice=0.5, Sm=0.6, wFm=0.4, MAE=0.1, n=8)


def result(path, **ious):
    table = {
        name: {"sinet": dict(METRICS, IoU=0.1), "mixture": dict(METRICS, IoU=iou)}
        for name, iou in ious.items()
    }
    row = dict(attribute="kind", bin="figure", n=2)
    breakdown = {name: [dict(row, IoU=dict(mixture=iou / 2))] for name, iou in ious.items()}
    path.write_text(json.dumps(dict(table=table, breakdown=breakdown)))
    return path


def test_numbers_replace_what_stood_there(tmp_path, monkeypatch):
    card = tmp_path / "CARD.md"
    card.write_text(f"# Card\n\n{BEGIN}\nnot measured yet\n{END}\n\nThe end.\n")
    held_out = result(tmp_path / "a.json", Hidden=0.25, Photos=0.75)
    maps = dict(METRICS, IoU=0.125, n=1, images=dict(a=dict(IoU=0.125)))
    other = tmp_path / "b.json"  # as tools/eval_maps.py writes it
    other.write_text(json.dumps(dict(maps, method="small", dataset="Kvasir")))
    assert call(monkeypatch, CARD, card, held_out, "--zero-shot", other) is None
    text = card.read_text()
    assert text.startswith("# Card\n") and text.endswith("The end.\n")
    assert "not measured yet" not in text
    assert "| IoU | Hidden (8) | Photos (8) |" in text
    assert "| mixture | 0.2500 | 0.7500 |" in text and "| sinet | 0.1000 | 0.1000 |" in text
    assert "| figure | 0.1250 | 0.3750 |" in text
    assert "| Kvasir | ensemble | 1 | 0.1250 |" in text
    # Again, with other numbers: nothing of the first remains.
    fill_card(card, result(tmp_path / "c.json", Hidden=0.375))
    assert "0.7500" not in card.read_text() and "Kvasir" not in card.read_text()


def test_a_set_without_a_kind_of_image(tmp_path):
    card = tmp_path / "CARD.md"
    card.write_text(f"{BEGIN}{END}")
    held_out = result(tmp_path / "a.json", Hidden=0.25, Photos=0.75)
    data = json.loads(held_out.read_text())
    data["breakdown"]["Hidden"][0]["bin"] = "clutter"
    held_out.write_text(json.dumps(data))
    fill_card(card, held_out)
    text = card.read_text()
    assert "| clutter | 0.1250 | - |" in text and "| figure | - | 0.3750 |" in text


def test_mistakes(tmp_path, monkeypatch):
    card = tmp_path / "CARD.md"
    card.write_text("no marks")
    held_out = result(tmp_path / "a.json", Hidden=0.25)
    with pytest.raises(ValueError, match="must hold the marks"):
        fill_card(card, held_out)
    code = call(monkeypatch, CARD, card, tmp_path / "absent.json")
    assert code.startswith("error: ") and "marks" in code
    card.write_text(f"{BEGIN}{END}")
    with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
        fill_card(card, tmp_path / "absent.json")
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="holds no table"):
        fill_card(card, other)
    assert card.read_text() == f"{BEGIN}{END}"

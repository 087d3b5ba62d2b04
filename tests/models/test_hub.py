"""Folders of a model: what they hold, and what is none."""

import pytest
from miniature import MINIATURES

from codmoe import Inferencer, ModelLevelMoE, create_model


def test_a_pretrained_folder_keeps_the_size_and_needs_no_backbone_file(tmp_path):
    config = dict(model=dict(experts=dict(sinet=MINIATURES["sinet"]), backbone="pvt_v2_b0"))
    resize = dict(type="Resize", scale=(96, 96))
    config["test_dataloader"] = dict(dataset=dict(data_root="/home/somebody", pipeline=[resize]))
    path = tmp_path / "miniature.py"
    path.write_text("\n".join(f"{key} = {value!r}" for key, value in config.items()))
    model = create_model(path)
    model._hub_mixin_config["backbone"]["checkpoint"] = "/home/somebody/absent.safetensors"
    model.cfg.threshold = 0.4
    model.save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert b"somebody" not in path.read_bytes()
    again = ModelLevelMoE.from_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    for inferencer in (Inferencer(again), Inferencer(checkpoint=weights)):
        assert inferencer.size == (96, 96) and inferencer.threshold == 0.4


def test_a_pretrained_folder_that_is_none(make_model, tmp_path):
    model = make_model(experts=dict(pranet=MINIATURES["pranet"]))
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        ModelLevelMoE.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        ModelLevelMoE.from_pretrained(tmp_path / "absent")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit the config beside it"):
        ModelLevelMoE.from_pretrained(tmp_path, experts=dict(sinet=MINIATURES["sinet"]))


def test_a_card_that_is_there_stays_unless_another_is_given(make_model, tmp_path):
    model = make_model(experts=dict(pranet=MINIATURES["pranet"]))
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert "neither what it was trained on" in " ".join(card.read_text().split())
    card.write_text("mine")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "mine"
    model.save_pretrained(tmp_path, card="---\nlicense: mit\n---\nnew")
    assert "new" in card.read_text()
    assert [path.read_text() for path in tmp_path.glob("README.2*.md")] == ["mine"]

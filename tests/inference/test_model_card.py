"""Model cards: what they say, and what they refuse."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin
from miniature import MINIATURES

from codmoe import Inferencer, ModelLevelMoE
from codmoe.evaluation.conventions import CONVENTIONS
from codmoe.inference.model_card import model_card

FACTS = dict(name="you/animals", data="3,040 of COD10K-v3; for research.", license="cc-by-nc-4.0")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    two = {name: MINIATURES[name] for name in ("sinet", "pranet")}
    router = dict(type="EvidenceRouter", width=16)
    return ModelLevelMoE("pvt_v2_b0", experts=two, top_k=1, router=router)


@pytest.fixture(scope="module")
def card(model):
    return model_card(model, **FACTS)


@pytest.fixture
def result(tmp_path):
    """``result(name, **iou)``: a file as tools/test.py writes it."""

    def write(dataset, **iou):
        def row(value):
            images = {str(i): dict(IoU=value) for i in range(3)}
            return dict(n=3, IoU=value, mDice=0.6, Sm=0.7, MAE=0.05, images=images)

        table = {dataset: {source: row(value) for source, value in iou.items()}}
        path = tmp_path / f"{dataset}.json"
        path.write_text(json.dumps(dict(table=table, conventions=CONVENTIONS)))
        return path

    return write


def test_a_card_says_everything_and_loads_what_it_shows(model, result, tmp_path, monkeypatch):
    files = [
        result("CAMO", pranet=0.7, sinet=0.5, uniform=0.6, oracle=0.75, mixture=0.68),
        result("NC4K", pranet=0.3, sinet=0.5, mixture=0.55),
    ]
    monkeypatch.chdir(tmp_path)
    text = model_card(model, files, **{**FACTS, "name": "animals"}, citation="Me (2026).")
    model.save_pretrained("animals", card=text)
    saved = (tmp_path / "animals/README.md").read_text()
    assert "More Information Needed" not in saved and saved == str(ModelCard(text))
    data = ModelCard(saved).data
    assert (data.license, data.library_name) == ("cc-by-nc-4.0", "codmoe")
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found["CAMO", "IoU"] == 0.68 and found["NC4K", "MAE"] == 0.05
    for expected in (
        "pranet, sinet) on one backbone (pvt_v2_b0): for each image a router picks 1",
        "| CAMO | mixture | 3 | 0.6800 |",
        "| CAMO | pranet | 3 | **0.7000** |",
        "MAE (mean absolute error, lower is better)",
        "| top-1 route, min |",
        "lowest on NC4K: IoU 0.5500",
        "CAMO: 3 images are few",
        "CAMO: the mixture has 2.0 points of IoU less than its best expert alone (pranet",
        "NC4K: the mixture has 5.0 points of IoU more than its best expert alone (sinet",
        "Me (2026).",
        "PraNet: parallel reverse attention (Fan et al., MICCAI 2020)",
        FACTS["data"],
    ):
        assert expected in saved
    used = re.search(r"```python\n(.*?)```", saved, re.S)[1]
    scope = {}
    exec(used.split("prediction =")[0], scope)
    assert isinstance(scope["infer"], Inferencer)


def test_a_card_without_results_says_so(card):
    assert "published without a result file" in card and "Nothing is known of how well" in card


def test_what_cannot_be_a_card_is_refused(model, result):
    with pytest.raises(ValueError, match="data is empty"):
        model_card(model, **{**FACTS, "data": " "})
    with pytest.raises(ValueError, match=r"'Apache 2.0' is no identifier.*'apache-2.0'"):
        model_card(model, **{**FACTS, "license": "Apache 2.0"})
    with pytest.raises(ValueError, match="'ujsc', which is no part of this model"):
        model_card(model, result("CAMO", mixture=0.5, ujsc=0.5), **FACTS)
    with pytest.raises(ValueError, match="none of the model as a whole"):
        model_card(model, result("CAMO", pranet=0.5), **FACTS)
    with pytest.raises(ValueError, match="'CAMO' is in another file, too"):
        model_card(model, [result("CAMO", mixture=0.5)] * 2, **FACTS)


def test_nothing_is_pushed_without_a_card_and_with_one_the_folder_is(model, card, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **kwargs):
            sent["repo"] = repo_id
            return type("Url", (), dict(repo_id=repo_id))

        def upload_folder(self, folder_path, **kwargs):
            sent.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return "https://hub/commit"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    with pytest.raises(ValueError, match="card is not given"):
        model.push_to_hub("you/animals")
    assert not sent
    assert model.push_to_hub("you/animals", card=card) == "https://hub/commit"
    assert set(sent) == {"repo", "config.json", "model.safetensors", "README.md"}
    assert b"from_pretrained('you/animals')" in sent["README.md"]

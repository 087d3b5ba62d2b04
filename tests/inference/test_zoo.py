import pytest
import torch
from miniature import NARROW
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

import codmoe
from codmoe.engine.checkpoints import save_weights
from codmoe.inference.zoo import config_of, create_model, list_models, load_whole, merge_model
from codmoe.models.moe import ModelLevelMoE

MINIATURE = dict(
    type="ModelLevelMoE",
    backbone=dict(type="TimmPyramid", name="pvt_v2_b0", pretrained=True),
    experts=NARROW,
    router=dict(type="EvidenceRouter", width=16),
    top_k=1,
)

MINIATURE_PARTS = {
    key: value for key, value in MINIATURE.items() if key not in ("type", "backbone")
} | dict(backbone="pvt_v2_b0")


def reverse(mapping):
    return dict(reversed(mapping.items()))


def write_config(folder, **more):
    path = folder / "miniature.py"
    # Not pretty_text, which sorts.
    path.write_text("\n".join(f"{k} = {v!r}" for k, v in dict(model=MINIATURE, **more).items()))
    return path


def save(folder, model, **meta):
    path = folder / "mini_best.pth"
    names = list(model.expert_names)
    save_weights(path, model, dict(expert_names=names, **meta), "run")
    return path


def test_public_names_are_all_there():
    from codmoe import ModelLevelMoE
    from codmoe.models.moe import ModelLevelMoE as same

    assert ModelLevelMoE is same
    for name in codmoe.__all__:
        assert getattr(codmoe, name) is not None and name in dir(codmoe)
    with pytest.raises(AttributeError, match="create_modle"):
        codmoe.create_modle  # noqa: B018


def test_models_are_listed_by_pattern():
    names = list_models()
    assert "ensemble/stage3" in names and not any(name.startswith("_base_") for name in names)
    assert "ensemble/stage3" in list_models("ensemble/*")
    assert list_models("nothing*") == []


def test_a_shipped_config_with_small_parts_and_one_expert_less():
    model = create_model(
        "ensemble/stage3",
        backbone=dict(name="pvt_v2_b0"),
        experts=dict(
            ujsc=None, sinet=dict(channels=8), pranet=dict(channels=8), zoomnet=dict(channels=8)
        ),
        router=dict(width=16),
    )
    assert tuple(model.experts) == ("pranet", "sinet", "zoomnet")
    assert not model.training
    # The shipped config asks for pretrained weights; nobody asked here.
    assert model.cfg.model.backbone.pretrained is False
    assert model.cfg.train_dataloader


def test_pretrained_is_passed_on_only_if_asked(tmp_path, monkeypatch):
    asked = []

    def timm_model(name, *, pretrained, checkpoint, **kwargs):
        asked.append((pretrained, checkpoint))
        raise FileNotFoundError("stop here")

    monkeypatch.setattr("codmoe.models.backbones.timm_pyramid.create_timm", timm_model)
    path = write_config(tmp_path)
    local = dict(checkpoint="local.pth")
    whole = tmp_path / "whole.pth"
    torch.save(dict(state_dict={}), whole)
    for options in (
        {},
        dict(pretrained=True),
        dict(backbone=local),
        dict(backbone="pvt_v2_b1", pretrained=True),
        dict(checkpoint=whole, pretrained=True, backbone=local),
    ):
        with pytest.raises(FileNotFoundError, match="stop here"):
            create_model(path, **options)
    wanted = [(False, None), (True, None), (False, "local.pth"), (True, None), (False, None)]
    assert asked == wanted


def test_a_checkpoint_alone_is_enough(tmp_path):
    first = create_model(write_config(tmp_path), top_k=2)
    # A config that would download, had its backbone not been told otherwise.
    cfg = Config(dict(model=dict(MINIATURE, top_k=2)))
    path = save(tmp_path, first, config=cfg.pretty_text)
    again = create_model(checkpoint=path)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x), first(x))
    assert not again.training and again.cfg.model.top_k == 2


def test_experts_keep_their_numbers(tmp_path):
    """mmengine writes configs sorted by key; the router knows experts by their position."""
    assert list(MINIATURE["experts"]) == ["sinet", "pranet"]
    first = create_model(write_config(tmp_path))
    assert first.expert_names == ("pranet", "sinet")
    reordered = Config(dict(model=MINIATURE)).pretty_text
    path = save(tmp_path, first, config=reordered)
    written = tmp_path / "dumped.py"
    written.write_text(reordered)
    for model in (create_model(checkpoint=path), create_model(written, checkpoint=path)):
        assert model.expert_names == first.expert_names
        assert list(model.cfg.model.experts) == list(first.expert_names)
    other = ModelLevelMoE(**{**MINIATURE_PARTS, "experts": reverse(MINIATURE["experts"])})
    load_whole(other, path)  # the order of a config is no order of experts
    save_weights(path, first, dict(expert_names=["sinet", "pranet"]), "run")
    with pytest.raises(ValueError, match="in the order"):
        load_whole(other, path)


def test_an_mmengine_training_checkpoint(tmp_path):
    """It has the config, sorted, and nothing that tells the order of the experts."""
    config = write_config(tmp_path)
    path = tmp_path / "epoch_1.pth"
    hub = dict(message_hub=HistoryBuffer([1.0], [1]))  # an object, as the real ones carry
    for without in ({}, dict(pranet=None)):
        first = create_model(config, experts=without)
        text = Config(dict(model=dict(MINIATURE, experts=first.cfg.model.experts))).pretty_text
        torch.save(dict(state_dict=first.state_dict(), meta=dict(cfg=text), **hub), path)
        named = create_model(config, checkpoint=path, experts=without)
        if not without:
            with pytest.raises(ValueError, match="order of its experts"):
                create_model(checkpoint=path)
            continue
        for again in (named, create_model(checkpoint=path)):
            for key, value in first.state_dict().items():
                torch.testing.assert_close(again.state_dict()[key], value)


def test_a_checkpoint_that_does_not_fit_or_explain_itself_is_refused(tmp_path):
    path = write_config(tmp_path)
    weights = save(tmp_path, create_model(path))
    with pytest.raises(ValueError, match="does not fit this model"):
        create_model(path, checkpoint=weights, experts=dict(pranet=None))
    with pytest.raises(ValueError, match="does not say which config"):
        create_model(checkpoint=weights)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        create_model(checkpoint=tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="needs name="):
        create_model()


@pytest.mark.parametrize(
    "text",
    [
        "model = dict(a=open('{0}', 'w'))",
        "import os",
        "_base_ = '{0}'",
        "model = [x for x in (1, 2)]",
        "model = (",
    ],
)
def test_a_config_in_a_checkpoint_cannot_run_code(tmp_path, text):
    trace = tmp_path / "trace"
    path = tmp_path / "x_best.pth"
    torch.save(dict(state_dict={}, meta=dict(config=text.format(trace))), path)
    with pytest.raises(ValueError, match=r"x_best\.pth"):
        config_of(path)
    assert not trace.exists()


def test_every_shipped_config_survives_the_way_through_a_checkpoint(tmp_path):
    from codmoe.engine.config import load_config
    from codmoe.shipped import list_configs

    path = tmp_path / "x_best.pth"
    for name in list_configs():
        cfg = load_config(name)
        names = [name for name, expert in cfg.model.experts.items() if expert is not None]
        meta = dict(config=cfg.pretty_text, expert_names=names)
        torch.save(dict(state_dict={}, meta=meta), path)
        again = config_of(path).model
        assert again.to_dict() == cfg.model.to_dict(), name
        assert [name for name in again.experts if again.experts[name] is not None] == names


def test_merging_overrides():
    base = dict(a=dict(type="X", b=dict(c=1, d=2), e=3), f=4)
    assert merge_model(base, dict(a=dict(b=dict(c=9)))) == dict(
        a=dict(type="X", b=dict(c=9, d=2), e=3), f=4
    )
    assert merge_model(base, dict(a=dict(type="Y", g=1)))["a"] == dict(type="Y", g=1)
    assert merge_model(base, dict(a=dict(_delete_=True, g=1)))["a"] == dict(g=1)
    assert merge_model(base, dict(a=None))["a"] is None
    assert base["a"]["b"]["c"] == 1
    # A config that leaves the experts to the default still has them by name.
    four = merge_model(dict(num_experts=4), dict(experts=dict(ujsc=None)))["experts"]
    assert list(four) == ["sinet", "pranet", "zoomnet", "ujsc"] and four["ujsc"] is None
    with pytest.raises(ValueError, match="did you mean 'ujsc'"):
        merge_model({}, dict(experts=dict(ujcs=None)))


def test_misspelt_names_are_answered(tmp_path):
    with pytest.raises(FileNotFoundError, match="ensemble/stage3"):
        create_model("ensemble/stage4")
    with pytest.raises(ValueError, match="did you mean 'top_k'"):
        create_model(write_config(tmp_path), topk=1)

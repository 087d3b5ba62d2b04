import re

import pytest
import timm
import torch
from backbone_tester import check_contract
from safetensors.torch import save_file

from codmoe.models.backbones import TimmPyramid

SMALL_SWIN = dict(
    embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 4), window_size=2, img_size=64
)


@pytest.mark.parametrize(
    ("name", "timm_args"),
    [
        ("pvt_v2_b0", {}),
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("test_mambaout", {}),  # channels last
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),  # channels last
    ],
)
def test_contract(name, timm_args):
    backbone = TimmPyramid(name=name, timm_args=timm_args)
    check_contract(backbone, (64, 64))
    if "img_size" not in timm_args:
        check_contract(backbone, (64, 96), n=1)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_mambaout"])
def test_channels_last_models_are_turned(name):
    backbone = TimmPyramid(name=name, timm_args=SMALL_SWIN if "swin" in name else {}).eval()
    images = torch.randn(1, 3, 64, 64)
    raw = backbone.body(images)
    for level, i in zip(backbone(images), backbone.levels, strict=True):
        torch.testing.assert_close(level, raw[i].movedim(-1, 1))


def test_extra_levels_of_a_model_are_left_out():
    backbone = TimmPyramid(name="resnet18")  # it has a level at stride 2 as well
    assert backbone.channels == (64, 128, 256, 512)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "convnext_atto", "test_mambaout", "mvitv2_tiny"])
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_local_checkpoint_is_really_loaded(name, suffix, tmp_path):
    torch.manual_seed(1)
    source = timm.create_model(name)  # with its classifier, as published
    path = tmp_path / f"weights.{suffix}"
    state = source.state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    torch.manual_seed(2)
    backbone = TimmPyramid(name=name, checkpoint=str(path)).eval()
    fresh = TimmPyramid(name=name).state_dict()
    stored = {key.replace(".", "_"): value for key, value in state.items()}
    loaded = backbone.state_dict()
    for key, value in loaded.items():
        own = key.removeprefix("body.").removeprefix("model.").replace(".", "_")
        assert torch.equal(value, stored[own]), key
    assert any(not torch.equal(value, fresh[key]) for key, value in loaded.items())


def test_a_half_precision_checkpoint_is_loaded_in_full_precision(tmp_path):
    source = timm.create_model("pvt_v2_b0").half()
    save_file(source.state_dict(), tmp_path / "half.safetensors")
    backbone = TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / "half.safetensors"))
    weight = backbone.body.patch_embed.proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.patch_embed.proj.weight.float())


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_in_the_names_of_pvts_authors_is_loaded(tmp_path):
    """What the COD papers' repositories point to: pvt_v2_b2.pth."""
    source = timm.create_model("pvt_v2_b0")
    state = {}
    for key, value in source.state_dict().items():
        key = re.sub("^patch_embed", "patch_embed1", key).replace("dwconv", "dwconv.dwconv")
        for part, theirs in (("downsample", "patch_embed"), ("blocks", "block"), ("norm", "norm")):
            pattern = rf"^stages\.(\d)\.{part}\b"
            key = re.sub(pattern, lambda m, name=theirs: f"{name}{int(m[1]) + 1}", key)
        state[key] = value
    assert "block1.0.mlp.dwconv.dwconv.weight" in state and "stages.0.norm.weight" not in state
    torch.save(state, tmp_path / "pvt_v2_b0.pth")
    body = TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / "pvt_v2_b0.pth")).body
    assert torch.equal(body.patch_embed.proj.weight, source.patch_embed.proj.weight)
    last = body.stages_3.blocks[1].mlp.dwconv.weight
    assert torch.equal(last, source.stages[3].blocks[1].mlp.dwconv.weight)
    for key in [key for i, key in enumerate(state) if not i % 3]:
        del state[key]
    torch.save(state, tmp_path / "part.pth")
    with pytest.warns(UserWarning, match=r"part.*\d+ of \d+ parameters are not in it"):
        TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / "part.pth"))


def of_timm(name):
    return lambda path: save_file(timm.create_model(name).state_dict(), path)


def of_a_stage(path):
    torch.save(dict(state_dict=TimmPyramid(name="pvt_v2_b0").state_dict(prefix="backbone.")), path)


@pytest.mark.parametrize(
    ("name", "leave", "fault"),
    [
        ("resnet.safetensors", of_timm("resnet18"), "does not fit 'pvt_v2_b0'"),
        ("b1.safetensors", of_timm("pvt_v2_b1"), "does not fit 'pvt_v2_b0'"),
        ("stage2.pth", of_a_stage, "does not fit 'pvt_v2_b0'"),
        ("page.safetensors", lambda path: path.write_text("<html>404</html>"), "cannot be read"),
    ],
)
def test_a_checkpoint_of_something_else_is_told(tmp_path, name, leave, fault):
    leave(tmp_path / name)
    with pytest.raises(ValueError, match=rf"backbone.checkpoint=.*{name}' {fault}"):
        TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / name))


def test_a_checkpoint_with_gaps_is_told(tmp_path):
    state = timm.create_model("pvt_v2_b0").state_dict()
    keys = [key for i, key in enumerate(state) if i % 3]
    save_file({key: state[key] for key in keys}, tmp_path / "part.safetensors")
    with pytest.warns(UserWarning, match=r"part.*\d+ of \d+ parameters are not in it"):
        TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / "part.safetensors"))
    keys = [key for i, key in enumerate(state) if not i % 3]
    save_file({key: state[key] for key in keys}, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"does not fit 'pvt_v2_b0': \d+ of"):
        TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / "less.safetensors"))


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"backbone.checkpoint=.*no.safetensors"):
        TimmPyramid(name="pvt_v2_b0", checkpoint=str(tmp_path / "no.safetensors"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pvt_v2_b22", "pvt_v2_b2"),
        ("resnet5o", "resnet50"),
        ("convnxt_tiny", "convnext_tiny"),
        ("vit_smal_patch14_dinov2", "vit_small_patch14_dinov2"),
    ],
)
def test_an_unknown_name_is_answered_with_a_near_one(name, meant):
    with pytest.raises(ValueError, match=f"{name!r} is not a timm model.*{meant!r}"):
        TimmPyramid(name=name)


def test_a_name_near_to_nothing_is_answered_with_where_to_look():
    with pytest.raises(ValueError, match=r"not a timm model.*list_models") as caught:
        TimmPyramid(name="qqqq")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224"])
def test_a_model_without_levels_is_told(name):
    with pytest.raises(ValueError, match=rf"backbone.name='{name}'.*hierarchical"):
        TimmPyramid(name=name)


def test_no_network_is_told_with_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Connection refused")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"pvt_v2_b0.*backbone.checkpoint="):
        TimmPyramid(name="pvt_v2_b0", pretrained=True)

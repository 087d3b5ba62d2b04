import pytest
import timm
import torch
from backbone_tester import check_contract
from safetensors.torch import save_file

from codmoe.models.backbones import ViTPyramid
from codmoe.models.backbones.vit_pyramid import _scale

PATCH16 = dict(name="vit_tiny_patch16_224", timm_args=dict(depth=2))
PATCH14 = dict(name="vit_small_patch14_dinov2", timm_args=dict(depth=2, embed_dim=48, num_heads=3))


def make(base, **kwargs):
    return ViTPyramid(**{"channels": (8, 16, 24, 32), **base, **kwargs})


@pytest.mark.parametrize(
    ("base", "image_size", "size"),
    [
        (PATCH16, 64, (64, 64)),
        (PATCH16, 64, (80, 112)),  # other than the position embedding
        (PATCH14, 56, (56, 56)),
        (PATCH14, 70, (70, 70)),
        (PATCH14, 56, (70, 42)),
        (PATCH14, 56, (14, 28)),
    ],
)
def test_levels_have_exactly_the_contracts_sizes(base, image_size, size):
    backbone = make(base, image_size=image_size)
    assert backbone.channels == (8, 16, 24, 32)
    check_contract(backbone, size)


def test_every_new_parameter_gets_a_gradient():
    backbone = make(PATCH14, image_size=56)
    check_contract(backbone, (56, 56))
    silent = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert [n for n in silent if not n.startswith("body.")] == []
    assert silent == []


def test_default_channels_are_pvts():
    backbone = ViTPyramid(**PATCH16, image_size=64)
    assert backbone.channels == (64, 128, 320, 512)


def test_levels_can_come_from_different_blocks():
    backbone = make(PATCH16, image_size=64, layers=(0, 0, 1, 1)).eval()
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images)
    torch.nn.init.normal_(backbone.body.blocks[1].mlp.fc2.weight)
    after = backbone(images)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_local_checkpoint_is_really_loaded(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", depth=2)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    torch.manual_seed(9)
    path = str(tmp_path / "vit.safetensors")
    backbone = make(PATCH16, image_size=64, checkpoint=path)
    stored, loaded = source.state_dict(), backbone.body.state_dict()
    assert loaded["pos_embed"].shape != stored["pos_embed"].shape  # 4 × 4 instead of 14 × 14
    for key in set(loaded) - {"pos_embed"}:
        assert torch.equal(loaded[key], stored[key]), key
    same = make(PATCH16, image_size=224, checkpoint=path)
    assert torch.equal(same.body.pos_embed, source.pos_embed)


def test_wrong_settings_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"backbone.layers=.*from 0 to 1"):
        make(PATCH16, image_size=64, layers=(0, 1, 2, 3))
    with pytest.raises(ValueError, match=r"backbone.channels=.*four"):
        make(PATCH16, image_size=64, channels=(8, 16))
    with pytest.raises(FileNotFoundError, match=r"backbone.checkpoint"):
        make(PATCH16, image_size=64, checkpoint=str(tmp_path / "none.pth"))
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit 'vit_tiny_patch16_224'"):
        make(PATCH16, image_size=64, checkpoint=str(path))


def test_the_deepest_level_reads_the_last_row_of_an_odd_token_map():
    tokens = torch.zeros(1, 4, 5, 5)
    tokens[..., 4, :] = 1
    pooled = _scale(4, 32)(tokens)
    assert pooled.shape == (1, 4, 3, 3)
    assert (pooled[..., 2, :] == 1).all() and not pooled[..., :2, :].any()

import pytest
import torch
from expert_tester import PVT_V2_B2, ExpertTester, millions

from codmoe.models.experts.pranet import ReverseAttention


class TestPraNet(ExpertTester):
    type = "PraNetExpert"
    miniature = dict(channels=16, deep_channels=16, shallow_channels=16)
    side_maps = 3
    published = (32, 5.95)

    def test_maps_go_from_global_to_fine(self):
        expert, images, pyramids, _ = self.example()
        output = expert(images, pyramids)
        sides = [m.shape[-1] for m in (*output.side_logits, output.logits)]
        assert sides == [8, 2, 4, 8]


class TestPraNetMended(TestPraNet):
    """With both deviations from the paper."""

    miniature = dict(TestPraNet.miniature, residual_norm=False, output_stride=4)
    side_maps = 4

    def test_maps_go_from_global_to_fine(self):
        expert, images, pyramids, _ = self.example()
        output = expert(images, pyramids)
        sides = [m.shape[-1] for m in (*output.side_logits, output.logits)]
        assert sides == [8, 2, 4, 8, 16]

    def test_size_at_default_and_published_width(self):
        mended = self.make(PVT_V2_B2, residual_norm=False, output_stride=4)
        assert 13.5 <= millions(mended) <= 16.5

    def test_the_residual_is_a_plain_convolution(self):
        heads = [attention.head for attention in self.make(**self.miniature).reverse]
        assert all(type(head) is torch.nn.Conv2d for head in heads) and len(heads) == 4

    def test_another_stride_is_told(self):
        with pytest.raises(ValueError, match=r"output_stride=2 is unknown; use 8.*or 4"):
            self.make(output_stride=2)


def test_reverse_attention_erases_what_is_found_and_adds_the_rest():
    attention = ReverseAttention(4, 8, kernel=3, depth=2, head_kernel=1).eval()
    seen = []
    attention.reduce.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    feature = torch.ones(1, 4, 4, 4)
    coarse = torch.full((1, 1, 4, 4), 30.0)
    coarse[..., :2] = -30
    out = attention(feature, coarse)
    assert (seen[0][..., 2:] == 0).all() and (seen[0][..., :2] == 1).all()
    torch.nn.init.zeros_(attention.head.conv.weight)
    torch.testing.assert_close(attention(feature, coarse), coarse)
    assert out.shape == coarse.shape


def test_reverse_attention_resizes_the_coarse_map():
    attention = ReverseAttention(4, 8, kernel=5, depth=3, head_kernel=1).eval()
    assert attention(torch.randn(2, 4, 5, 7), torch.randn(2, 1, 3, 4)).shape == (2, 1, 5, 7)

import pytest
import torch
from timm.models.pvt_v2 import MlpWithDepthwiseConv

from codmoe.compiled.forms import (
    OneChannel,
    SummedMlp,
    gelu,
    merge_heads,
    shorten_gelu,
    sum_depthwise,
)
from codmoe.models.experts.sinet import GroupReversalBlock
from codmoe.models.experts.ujsc import DilatedSum


@pytest.mark.parametrize("shape", [(2, 5, 9, 13), (1, 5, 40, 30)])
def test_a_dilated_sum_to_one_channel_is_merged(shape):
    whole = torch.nn.Sequential(DilatedSum(5, 1, (1, 6, 12)), torch.nn.ReLU()).double()
    x = torch.randn(shape).double()
    with torch.no_grad():
        expected = whole[0](x)
        merge_heads(whole)
        assert type(whole[0]) is OneChannel
        # Each sum is of float32 numbers, as a convolution's is.
        torch.testing.assert_close(whole[0](x), expected, rtol=1e-5, atol=1e-5)


def test_other_convolutions_stay():
    whole = torch.nn.Sequential(DilatedSum(5, 4, (1, 2)), torch.nn.Conv2d(4, 1, 3, padding=1))
    before = repr(whole)
    merge_heads(whole)
    assert repr(whole) == before


def test_the_scores_of_sinets_blocks_are_merged():
    block = GroupReversalBlock(16, 2).eval().evaluation_form()
    x, guide = torch.randn(2, 16, 7, 9), torch.randn(2, 1, 7, 9)
    with torch.no_grad():
        expected = block(x, guide)
        merge_heads(block)
        assert type(block.score) is OneChannel
        for found, wanted in zip(block(x, guide), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_depthwise_convolution_is_a_sum_of_shifted_maps():
    whole, tokens = torch.nn.Sequential(MlpWithDepthwiseConv(6, 24)), torch.randn(2, 5 * 7, 6)
    torch.nn.init.normal_(whole[0].dwconv.weight)
    with torch.no_grad():
        expected = whole[0](tokens, (5, 7))
        sum_depthwise(whole)
        assert type(whole[0]) is SummedMlp
        found = whole[0](tokens, (5, 7))
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_its_gelu_is_gelu():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.tensor([-1e30, -100.0, 100.0, 1e30])])
    apart = (gelu(x) - torch.nn.functional.gelu(x)).abs()
    assert apart.max() < 4e-6


def test_linear_attentions_block_has_another_activation_and_stays():
    whole = torch.nn.Sequential(MlpWithDepthwiseConv(6, 24, extra_relu=True))
    sum_depthwise(whole)
    assert type(whole[0]) is MlpWithDepthwiseConv


def test_gelus_are_shortened_where_they_are_exact_ones():
    exact, other = torch.nn.Sequential(torch.nn.GELU()), torch.nn.Sequential(torch.nn.GELU("tanh"))
    x = torch.randn(100)
    for whole in (exact, other):
        expected = whole(x)
        shorten_gelu(whole)
        torch.testing.assert_close(whole(x), expected, rtol=0, atol=4e-6)
    assert type(other[0]) is torch.nn.GELU and type(exact[0]) is not torch.nn.GELU

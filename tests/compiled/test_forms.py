import pytest
import torch

from codmoe.compiled.forms import OneChannel, merge_heads
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

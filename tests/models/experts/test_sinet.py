import pytest
import torch
from expert_tester import PVT_V2_B2, ExpertTester, millions

from codmoe.models.experts.sinet import GroupReversalBlock, GroupReversalStage


class TestSINet(ExpertTester):
    type = "SINetExpert"
    miniature = dict(channels=16)
    side_maps = 3
    published = (32, 0.84)

    def test_width_must_divide_by_eight(self):
        with pytest.raises(ValueError, match="multiple of 8"):
            self.make(channels=20)

    def test_maps_go_from_coarse_search_to_fine(self):
        expert, images, pyramids, _ = self.example()
        output = expert(images, pyramids)
        sides = [m.shape[-1] for m in (*output.side_logits, output.logits)]
        assert sides == [8, 2, 4, 8]


class TestSINetFine(TestSINet):
    """With a map at stride 4, a deviation from the paper."""

    miniature = dict(channels=32, output_stride=4)
    side_maps = 4

    def test_maps_go_from_coarse_search_to_fine(self):
        expert, images, pyramids, _ = self.example()
        output = expert(images, pyramids)
        sides = [m.shape[-1] for m in (*output.side_logits, output.logits)]
        assert sides == [8, 2, 4, 8, 16]

    def test_size_at_default_and_published_width(self):
        assert 13.5 <= millions(self.make(PVT_V2_B2, output_stride=4)) <= 16.5

    def test_f1_reaches_the_map(self):
        expert, images, pyramids, _ = self.example()
        expert.eval()
        before = expert(images, pyramids).logits
        pyramids[0][0] = pyramids[0][0] + 5
        assert not torch.allclose(expert(images, pyramids).logits, before)

    def test_another_stride_is_told(self):
        with pytest.raises(ValueError, match="output_stride=16 is unknown"):
            self.make(output_stride=16)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_the_guide_enters_behind_every_group(groups):
    """As if it were written there and convolved with the whole weight."""
    block = GroupReversalBlock(8, groups).double()
    x, guide = (torch.randn(2, c, 6, 5, dtype=torch.float64, requires_grad=True) for c in (8, 1))
    parts = [p for chunk in x.chunk(groups, dim=1) for p in (chunk, guide)]
    interleaved = torch.cat(parts, dim=1)
    assert interleaved.shape[1] == 8 + groups
    expected = x + block.conv(interleaved)
    torch.testing.assert_close(block(x, guide)[0], expected)
    probe = torch.randn_like(expected)
    inputs = (x, guide, *block.conv.parameters())
    for ours, theirs in zip(
        torch.autograd.grad((block(x, guide)[0] * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_stage_is_led_by_what_was_not_found():
    stage = GroupReversalStage(16)
    seen = []
    stage.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    coarse = torch.tensor([-8.0, 8.0]).view(1, 1, 1, 2)
    stage(torch.randn(1, 16, 1, 2), coarse)
    torch.testing.assert_close(seen[0], coarse.neg().sigmoid())
    assert [b.groups for b in stage.blocks] == [1, 2, 16]


def test_a_stage_adds_the_incoming_map():
    stage = GroupReversalStage(16)
    x = torch.randn(1, 16, 4, 4)
    for block in stage.blocks:
        torch.nn.init.zeros_(block.score.weight)
        torch.nn.init.zeros_(block.score.bias)
    coarse = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(stage(x, coarse), coarse + 1 - coarse.sigmoid())


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_the_block_for_evaluation_computes_the_same(groups):
    block = GroupReversalBlock(16, groups).double().eval()
    x, guide = torch.randn(2, 16, 7, 9).double(), torch.randn(2, 1, 7, 9).double()
    with torch.no_grad():
        for one, other in zip(block(x, guide), block.evaluation_form()(x, guide), strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)

import pytest
import torch
import torch.nn.functional as F
from expert_tester import ExpertTester

from codmoe.models.experts.zoomnet import HierarchicalMixedUnit, ScaleIntegrationUnit


class TestZoomNet(ExpertTester):
    type = "ZoomNetExpert"
    miniature = dict(channels=16)
    side_maps = 0
    scale = "input_scales"
    published = (64, 4.49)

    def test_reads_half_whole_and_one_and_a_half(self):
        expert, images, pyramids, _ = self.example()
        assert tuple(expert.input_scales) == (0.5, 1.0, 1.5)
        expert.eval()
        before = expert(images, pyramids).logits
        for scale in range(3):
            for level in range(4):
                changed = [list(p) for p in pyramids]
                changed[scale][level] = torch.randn_like(changed[scale][level])
                assert not torch.allclose(before, expert(images, changed).logits, atol=1e-5)

    def test_loss_is_cross_entropy_and_growing_certainty(self):
        expert, images, pyramids, target = self.example()
        output = expert(images, pyramids)
        early, late = (expert.loss(output, target, t) for t in (0.0, 1.0))
        assert set(early) == {"bce", "uncertainty"}
        full = F.interpolate(output.logits, target.shape[-2:], mode="bilinear")
        torch.testing.assert_close(early["bce"], F.binary_cross_entropy_with_logits(full, target))
        assert early["uncertainty"] == 0
        ambiguity = 1 - (2 * output.logits.sigmoid() - 1) ** 2
        torch.testing.assert_close(late["uncertainty"], ambiguity.mean())

    def test_the_ramp_of_certainty_goes_on_where_it_was(self):
        _, images, pyramids, target = self.example()
        first, later, half = (self.make(**self.miniature, ual_start=s) for s in (0.0, 1.0, 0.5))
        output = first(images, pyramids)
        end = first.loss(output, target, 1.0)["uncertainty"]
        assert later.loss(output, target, 0.0)["uncertainty"] == end
        torch.testing.assert_close(half.loss(output, target, 0.0)["uncertainty"], end / 2)
        with pytest.raises(ValueError, match="start=2"):
            self.make(ual_start=2)

    @pytest.mark.parametrize("scales", [(1.0, 1.5), (1.5, 1.0, 0.5), (1.0, 1.0, 1.5)])
    def test_three_ascending_scales(self, scales):
        with pytest.raises(ValueError, match="three in ascending order"):
            self.make(**self.miniature, input_scales=scales)

    def test_segmentation_loss_can_be_exchanged(self):
        expert = self.make(**self.miniature, segmentation_loss="structure")
        _, images, pyramids, target = self.example()
        assert set(expert.loss(expert(images, pyramids), target, 0.5)) == {
            "structure",
            "uncertainty",
        }
        with pytest.raises(ValueError, match="use 'bce' or 'structure'"):
            self.make(segmentation_loss="dice")


def test_scales_are_mixed_by_weights_that_sum_to_one():
    unit = ScaleIntegrationUnit(8).eval()
    for branch in (unit.large_after, unit.middle, unit.small_after):  # each says a constant
        torch.nn.init.zeros_(branch.conv.weight)
        torch.nn.init.constant_(branch.bn.bias, 3.0)
    mixed = unit(torch.randn(1, 8, 2, 3), torch.randn(1, 8, 5, 7), torch.randn(1, 8, 8, 11))
    torch.testing.assert_close(mixed, torch.full((1, 8, 5, 7), 3.0))


def test_groups_hand_on_to_the_next_only():
    unit = HierarchicalMixedUnit(8, groups=3).eval()
    x = torch.randn(1, 8, 4, 4)
    reached = []
    for conv in unit.interact:
        conv.register_forward_hook(lambda *args: reached.append(args[-1].clone()))
    unit(x)
    first = reached[:]
    reached.clear()
    with torch.no_grad():  # another second group leaves the first alone and changes the third
        unit.interact[1].conv.weight.normal_()
    unit(x)
    same = [torch.equal(a, b) for a, b in zip(first, reached, strict=True)]
    assert same == [True, False, False]

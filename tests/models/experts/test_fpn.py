import pytest
import torch
from expert_tester import PVT_V2_B2, ExpertTester, millions


class TestFPN(ExpertTester):
    type = "FPNExpert"
    miniature = dict(channels=16)
    side_maps = 0

    def test_size_at_default_and_published_width(self):
        """A baseline and none of the four experts: it is as small as the papers have it."""
        assert millions(self.make(PVT_V2_B2)) == pytest.approx(5.0, rel=0.02)
        assert millions(self.make(PVT_V2_B2, channels=128)) == pytest.approx(1.3, rel=0.03)

    def test_the_map_has_stride_4(self):
        expert, images, pyramids, _ = self.example()
        assert expert(images, pyramids).logits.shape[-2:] == (16, 16)

    @pytest.mark.parametrize("fuse", ["concat", "sum"])
    @pytest.mark.parametrize("level", range(4))
    def test_every_level_reaches_the_map(self, fuse, level):
        expert = self.make(**self.miniature, fuse=fuse).eval()
        _, images, pyramids, _ = self.example()
        before = expert(images, pyramids).logits
        pyramids[0][level] = pyramids[0][level] + 5
        assert not torch.allclose(expert(images, pyramids).logits, before)

    def test_deep_levels_are_added_to_shallow_ones(self):
        expert = self.make(**self.miniature).eval()
        _, images, pyramids, _ = self.example()
        seen = []
        expert.smooth[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        expert(images, pyramids)
        pyramids[0][3] = pyramids[0][3] + 5
        expert(images, pyramids)
        assert not torch.allclose(*seen)

    def test_another_fusion_is_told(self):
        with pytest.raises(ValueError, match=r"fuse='mean'.*'concat' or 'sum'"):
            self.make(fuse="mean")

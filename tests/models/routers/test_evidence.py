import pytest
import torch
from router_tester import CHANNELS, NAMES, RouterTester, example

from codmoe.compiled.copies import frozen_copy
from codmoe.models.layers import PaddedConv
from codmoe.models.routers.evidence import (
    BRANCHES,
    EdgeBranch,
    Familiarity,
    FrequencyBranch,
    local_deviation,
    luminance,
    window_mean,
)


class TestEvidenceRouter(RouterTester):
    type = "EvidenceRouter"
    miniature = dict(width=16)

    def woken(self, **kwargs):
        """A router whose last layer is no longer zero, and without batch statistics."""
        router = self.make(**kwargs).eval()
        torch.nn.init.normal_(router.fuse[-1].weight)
        return router

    def test_size_at_default_width(self):
        router = self.make(in_channels=(64, 128, 320, 512), width=344)
        default = type(router)(in_channels=(64, 128, 320, 512), expert_names=NAMES, top_k=2)
        for r in (router, default):
            assert 7.2e6 <= sum(p.numel() for p in r.parameters()) <= 8.8e6

    def test_convolving_in_another_type_changes_no_score(self):
        router = self.woken(width=20)  # whose channels are no multiples of 8
        images, pyramid = example()
        with torch.no_grad():
            frozen = frozen_copy(router, dtype=torch.float32, device=images.device)
            expected = frozen.score(images, pyramid)
            frozen.convolve_in(torch.float32)
            frozen.convolution_dtype = None  # no autocast to float32
            found = frozen.score(images, pyramid)
        sigma = expected.std()
        torch.testing.assert_close(found / sigma, expected / sigma, rtol=0, atol=1e-4)
        shapes = [m.weight.shape[1] for m in frozen.modules() if isinstance(m, PaddedConv)]
        assert len(shapes) == 5 and not any(channels % 8 for channels in shapes)

    def test_every_expert_starts_with_the_same_chance(self):
        d = self.make().eval()(*example())
        torch.testing.assert_close(d.probabilities, torch.full((5, 4), 0.25))

    def test_reads_the_image_and_every_level(self):
        router = self.woken()
        images, pyramid = example()
        before = router(images, pyramid).logits
        other = router(torch.randn_like(images), pyramid).logits
        assert not torch.allclose(before, other, atol=1e-4)
        for level in range(4):
            changed = list(pyramid)
            changed[level] = torch.randn_like(changed[level]) * 2
            assert not torch.allclose(before, router(images, changed).logits, atol=1e-4)

    @pytest.mark.parametrize("name", BRANCHES)
    def test_each_branch_is_heard_and_can_be_left_out(self, name):
        only = self.woken(branches={other: other == name for other in BRANCHES})
        assert list(only.branches) == [name]
        d = only(*example())
        assert d.logits.std(0).min() > 1e-4  # differs from image to image
        without = self.woken(branches={name: False})
        assert list(without.branches) == [other for other in BRANCHES if other != name]
        assert without(*example()).logits.shape == (5, 4)
        fewer, all_of_them = (
            sum(p.numel() for p in r.parameters()) for r in (without, self.make())
        )
        assert fewer < all_of_them

    def test_one_branch_switched_off_is_heard_no_more(self):
        router = self.woken()
        images, pyramid = example()
        for norm in router.norms.values():
            norm.bias.data.normal_()
        found = router.without(images, pyramid)
        assert list(found) == list(BRANCHES)
        evidence = router.evidence(images, pyramid)
        for name, logits in found.items():
            # By hand: the branch gives the mean that its norm has seen, whatever the image.
            router.branches[name].forward = lambda *_, n=name: router.norms[n].running_mean.expand(
                5, -1
            )
            torch.testing.assert_close(router.score(images, pyramid), logits)
            del router.branches[name].forward
        assert torch.equal(router.evidence(images, pyramid)["edge"], evidence["edge"])

    def test_branch_errors(self):
        with pytest.raises(ValueError, match="texture"):
            self.make(branches=dict(textures=False))
        with pytest.raises(ValueError, match="leave at least one on"):
            self.make(branches=dict.fromkeys(BRANCHES, False))

    def test_noise_only_in_training_and_annealed_to_nothing(self):
        router = self.make(noise=1.0)
        inputs = example(64)

        def spread(progress):
            torch.manual_seed(1)
            d = router(*inputs, progress=progress)
            assert d.logits.abs().max() < 1e-6  # the clean ones are what losses see
            return (d.weights - 0.5).abs().mean().item()

        router.train()
        start, middle, late, end = (spread(t) for t in (0.0, 0.5, 0.8, 1.0))
        assert start > middle > 0.01
        assert late < 1e-6 and end < 1e-6  # the last part learns the choice that will be made
        router.noise_end = 1.0
        assert spread(0.8) > 0.01
        router.eval()
        assert spread(0.0) < 1e-6

    def test_noise_that_ends_before_it_starts_is_told(self):
        with pytest.raises(ValueError, match="noise_end=0"):
            self.make(noise_end=0.0)

    def test_training_noise_lets_every_expert_be_chosen(self):
        d = self.make().train()(*example(64), progress=0.0)
        assert set(d.indices.flatten().tolist()) == {0, 1, 2, 3}

    def test_every_parameter_gets_a_gradient(self):
        router = self.make().train()
        torch.nn.init.normal_(router.fuse[-1].weight)
        d = router(*example())
        (d.probabilities * torch.randn_like(d.probabilities)).sum().backward()
        silent = [n for n, p in router.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []

    @pytest.mark.parametrize("detach", [False, True])
    def test_detach_keeps_the_gradient_from_the_backbone(self, detach):
        router = self.woken(detach=detach)
        images, pyramid = example()
        pyramid = [level.requires_grad_() for level in pyramid]
        router(images, pyramid).logits.square().sum().backward()
        assert all((level.grad is None) == detach for level in pyramid)

    def test_learns_texture_from_the_image_alone(self):
        router = self.make().train()
        fine = torch.randn(16, 3, 64, 64)
        coarse = torch.nn.functional.interpolate(torch.randn(16, 3, 8, 8), (64, 64))
        images = torch.cat([fine, coarse])
        pyramid = [torch.zeros(32, c, s, s) for c, s in zip(CHANNELS, (16, 8, 4, 2), strict=True)]
        label = torch.tensor([0] * 16 + [2] * 16)
        optimizer = torch.optim.Adam(router.parameters(), lr=3e-3)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(router(images, pyramid).logits, label).backward()
            optimizer.step()
        router.train(False)
        assert (router(images, pyramid).indices[:, 0] == label).float().mean() > 0.9


def test_luminance_weighs_the_channels():
    image = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    assert luminance(image).item() == pytest.approx(0.299 + 5.87 + 11.4)


def test_local_deviation_of_stripes():
    stripes = torch.arange(32).remainder(2).float().expand(1, 1, 32, 32)
    inside = local_deviation(stripes)[..., 8:-8, 8:-8]
    assert inside.min() > 0.49 and inside.max() < 0.51
    assert local_deviation(torch.ones(1, 1, 16, 16)).max() < 0.01


def test_edges_answer_in_their_direction():
    branch = EdgeBranch(CHANNELS, 16)
    step = torch.zeros(1, 3, 64, 64)
    step[..., 30:] = 1
    maps = branch.responses(step)
    assert maps.shape == (1, 12, 32, 32)
    horizontal, vertical = maps[:, 0].abs().max(), maps[:, 1].abs().max()
    assert horizontal > 0.4 and vertical < 1e-5


def test_spectrum_of_a_wave_lies_in_its_ring_and_direction():
    branch = FrequencyBranch(CHANNELS, 16, size=64, radial=8, directional=4)
    x = torch.arange(64).float()

    def peak(wave):
        statistics = branch.statistics(wave.expand(1, 3, 64, 64))[0]
        return divmod(int(statistics[:32].argmax()), 8)

    # 16 cycles over 64 pixels is half of Nyquist; a wave along x has its power on the x axis.
    sector_x, ring_x = peak(torch.sin(2 * torch.pi * 16.5 * x / 64).view(1, 1, 1, 64))
    sector_y, ring_y = peak(torch.sin(2 * torch.pi * 16.5 * x / 64).view(1, 1, 64, 1))
    assert ring_x == ring_y == 4
    assert sector_y == 2 and sector_x in (0, 3)
    _, slow = peak(torch.sin(2 * torch.pi * 5 * x / 64).view(1, 1, 1, 64))
    assert slow == 1


def test_window_means_leave_out_what_lies_outside():
    x = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    whole = torch.nn.functional.avg_pool2d(x, 7, 1, 3, count_include_pad=False)
    assert torch.allclose(window_mean(x, 7), whole, rtol=1e-12)


def test_far_from_known_images_weights_become_equal():
    torch.manual_seed(0)
    router = TestEvidenceRouter().woken(fallback=4.0, top_k=4)
    images, pyramid = torch.randn(32, 3, 64, 64) * 0.1, example()[1]
    pyramid = [level.repeat(7, 1, 1, 1)[:32] * 0.1 for level in pyramid]
    familiarity = router.familiarity
    familiarity.kept = []
    before = router(images, pyramid)
    assert familiarity.edge == 0 and before.weights.std(1).min() > 1e-4  # nothing is known yet
    familiarity.learn(familiarity.kept[0][:1])
    assert familiarity.edge == 0  # of one image nothing is learnt
    familiarity.learn(torch.cat(familiarity.kept))
    near = router(images, pyramid)
    same = familiarity(familiarity.kept[0]) == 1
    assert same.sum() == 30  # 95 % of 32
    assert torch.equal(near.logits[same], before.logits[same])
    far = router(images * 30, [level * 30 for level in pyramid])
    torch.testing.assert_close(far.weights, torch.full((32, 4), 0.25), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match=r"router\.fallback=-1 must be 0"):
        TestEvidenceRouter().make(fallback=-1)
    assert not [key for key in TestEvidenceRouter().make().state_dict() if "familiarity" in key]


def test_distance_is_in_deviations():
    part = Familiarity(8, 4.0)
    torch.manual_seed(0)
    scales = torch.linspace(0.1, 5, 8)
    part.learn(torch.randn(4000, 8) * scales + 3)
    # √(χ² / 8) has a mean of 0.97 and a 95 % quantile of 1.39.
    assert abs(part.distance(torch.randn(999, 8) * scales + 3).mean() - 0.97) < 0.03
    assert abs(part.edge - 1.39) < 0.05
    twice = part(3 + scales[None] * 2 * part.edge)  # at twice the edge
    assert abs(twice - torch.tensor(-4.0).exp()) < 2e-3

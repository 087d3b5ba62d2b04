"""What every expert must pass. A new one is tested by subclassing :class:`ExpertTester`."""

import inspect
import math

import pytest
import torch

from codmoe.models.losses import StructureLoss, iou_per_image
from codmoe.registry import MODELS

CHANNELS = (8, 16, 24, 32)
PVT_V2_B2 = (64, 128, 320, 512)


def pyramids_of(expert, images, channels=CHANNELS):
    """Random pyramids, one a scale, as large as a backbone would make them (sides rounded up)."""
    height, width = images.shape[-2:]
    pyramids = []
    for scale in expert.input_scales:
        h, w = height, width
        if scale != 1:
            h, w = (max(round(side * scale / 32), 1) * 32 for side in (height, width))
        sizes = [(math.ceil(h / s), math.ceil(w / s)) for s in (4, 8, 16, 32)]
        pyramids.append(
            [torch.randn(len(images), c, *s) for c, s in zip(channels, sizes, strict=True)]
        )
    return pyramids


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def nudge_zeros(module):
    """Gates that start at zero hide whether what lies behind them is connected."""
    for p in module.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)


class ExpertTester:
    """Subclass with ``type``, ``miniature`` and what the paper says; no constructor."""

    type: str
    miniature: dict
    side_maps: int
    published: tuple[int, float] | None = None  # channels, millions of parameters on PVT-v2-B2
    gradient_free: tuple[str, ...] = ()  # parameters whose gradient is zero by mathematics
    scale = "input_scale"  # argument that says at which scale the image is read

    def make(self, in_channels=CHANNELS, **kwargs):
        return MODELS.build(dict(type=self.type, in_channels=in_channels, **kwargs))

    def example(self, n=2, height=64, width=64):
        expert = self.make(**self.miniature)
        images = torch.randn(n, 3, height, width)
        target = torch.zeros(n, 1, height, width)
        target[..., height // 4 : height // 2, width // 4 : 3 * width // 4] = 1
        return expert, images, pyramids_of(expert, images), target

    @pytest.mark.parametrize("size", [(64, 64), (70, 100), (33, 96)])
    def test_output_meets_the_contract_at_any_size(self, size):
        expert, images, pyramids, target = self.example(2, *size)
        for mode in (True, False):
            output = expert.train(mode)(images, pyramids)
            maps = [output.logits, *output.side_logits]
            assert all(m.ndim == 4 and m.shape[:2] == (2, 1) for m in maps)
            assert all(torch.isfinite(m).all() for m in maps)
            assert len(output.side_logits) == self.side_maps
            assert output.rows is None
            losses = expert.loss(output, target, 0.5)
            assert losses and all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())

    @pytest.mark.parametrize("side", [32, 64])
    def test_trains_on_one_small_image(self, side):
        expert, images, pyramids, target = self.example(1, side, side)
        expert.train()
        sum(expert.loss(expert(images, pyramids), target, 0.5).values()).backward()

    def test_an_image_is_not_changed_by_its_neighbours(self):
        expert, images, pyramids, _ = self.example(3)
        expert.eval()
        together = expert(images, pyramids).logits
        alone = expert(images[1:2], [[level[1:2] for level in p] for p in pyramids]).logits
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_every_parameter_gets_a_gradient(self, autocast):
        expert, images, pyramids, target = self.example()
        nudge_zeros(expert)
        expert.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = expert.loss(expert(images, pyramids), target, 0.5)
        assert all(torch.isfinite(v) and v.dtype == torch.float32 for v in losses.values())
        sum(losses.values()).backward()
        grads = {name: p.grad for name, p in expert.named_parameters()}
        assert [name for name, g in grads.items() if g is None] == []
        assert [name for name, g in grads.items() if not torch.isfinite(g).all()] == []
        idle = [n for n, g in grads.items() if not g.any() and not n.endswith(self.gradient_free)]
        assert idle == []

    def test_overfits_one_image(self):
        expert, images, pyramids, target = self.example(1)
        expert.train()
        optimizer = torch.optim.Adam(expert.parameters(), lr=1e-2)
        criterion, history = StructureLoss(), []
        for _ in range(50):
            output = expert(images, pyramids)
            history.append(criterion(output.logits, target).item())
            optimizer.zero_grad()
            sum(expert.loss(output, target, 0.0).values()).backward()
            optimizer.step()
        assert history[-1] < history[0] / 2
        assert iou_per_image(output.logits, target) > 0.8

    def test_size_at_default_and_published_width(self):
        assert 13.5 <= millions(self.make(PVT_V2_B2)) <= 16.5
        if self.published is None:
            return
        channels, expected = self.published
        assert millions(self.make(PVT_V2_B2, channels=channels)) == pytest.approx(
            expected, rel=0.02
        )

    def test_the_image_can_be_read_at_another_scale(self):
        value = 1.5 if self.scale == "input_scale" else (0.5, 1.5, 2.0)
        expert = self.make(**self.miniature, **{self.scale: value}).eval()
        assert expert.input_scales == (value if isinstance(value, tuple) else (value,))
        _, images, _, target = self.example()
        output = expert(images, pyramids_of(expert, images))
        assert output.logits.shape[:2] == (2, 1)
        assert all(torch.isfinite(v) for v in expert.loss(output, target, 0.5).values())

    @pytest.mark.parametrize("value", [0, -1.0, math.inf, "1.5", True])
    def test_an_impossible_scale_is_told(self, value):
        fault = "is of the wrong type" if value == "1.5" else "must be a positive number"
        told = rf"{self.type}: {self.scale}(\[0\])?=.*{fault}"
        value = value if self.scale == "input_scale" else (value, 1.0, 1.5)
        with pytest.raises(ValueError, match=told):
            self.make(**self.miniature, **{self.scale: value})

    def test_wrong_number_of_levels_is_told(self):
        with pytest.raises(ValueError, match=rf"{self.type}.*in_channels.*four"):
            self.make((8, 16, 32))

    def test_weights_survive_a_round_trip(self):
        expert, images, pyramids, _ = self.example()
        other = self.make(**self.miniature)
        other.load_state_dict(expert.state_dict())
        a, b = expert.eval()(images, pyramids), other.eval()(images, pyramids)
        torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=0)

    def test_is_documented(self):
        assert "Args:" in inspect.getdoc(MODELS.get(self.type))

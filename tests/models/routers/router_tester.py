"""What every router must pass. A new one is tested by subclassing :class:`RouterTester`."""

import math

import pytest
import torch

from codmoe.registry import MODELS

CHANNELS = (8, 16, 24, 32)
NAMES = ("sinet", "pranet", "zoomnet", "ujsc")


def pyramid_of(images, channels=CHANNELS):
    sizes = [[math.ceil(side / s) for side in images.shape[-2:]] for s in (4, 8, 16, 32)]
    return [torch.randn(len(images), c, *s) for c, s in zip(channels, sizes, strict=True)]


def example(n=5, height=64, width=64):
    images = torch.randn(n, 3, height, width)
    return images, pyramid_of(images)


class RouterTester:
    """Subclass with ``type`` and ``miniature``; no constructor."""

    type: str
    miniature: dict = {}
    top_k: int | None = 2  # None: the router has its own

    def make(self, **kwargs):
        filled_in = dict(in_channels=CHANNELS, expert_names=NAMES)
        if self.top_k is not None:
            filled_in["top_k"] = self.top_k
        return MODELS.build(dict(type=self.type, **{**filled_in, **self.miniature, **kwargs}))

    @pytest.mark.parametrize("size", [(64, 64), (70, 100), (33, 47)])
    @pytest.mark.parametrize("training", [False, True])
    def test_decision_meets_the_contract(self, size, training):
        router = self.make().train(training)
        d = router(*example(5, *size), progress=0.3)
        k = router.top_k
        assert d.logits.shape == d.probabilities.shape == (5, 4)
        assert d.indices.shape == d.weights.shape == (5, k)
        assert d.expert_names == NAMES
        assert d.logits.dtype == d.weights.dtype == torch.float32
        assert d.indices.min() >= 0 and d.indices.max() < 4
        assert all(len(set(row)) == k for row in d.indices.tolist())
        torch.testing.assert_close(d.probabilities.sum(1), torch.ones(5))
        torch.testing.assert_close(d.weights.sum(1), torch.ones(5))
        torch.testing.assert_close(d.probabilities, d.logits.softmax(1))
        assert (d.weights.diff(dim=1) <= 0).all()  # the first choice is the heaviest

    def test_weights_are_the_softmax_over_the_best_logits(self):
        d = self.make().eval()(*example())
        k = d.indices.shape[1]
        best = d.logits.topk(k, dim=1).values
        torch.testing.assert_close(d.logits.gather(1, d.indices), best)
        torch.testing.assert_close(d.weights, best.softmax(1))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_changes_nothing(self, dtype):
        router = self.make().eval()
        images, pyramid = example()
        half = [level.to(dtype) for level in pyramid]
        d = None
        with torch.autocast("cpu", dtype):
            d = router(images, half)
        assert d.logits.dtype == d.weights.dtype == torch.float32
        assert torch.isfinite(d.logits).all()
        if self.type != "RandomRouter":
            plain = router(images, [level.float() for level in half])
            torch.testing.assert_close(d.logits, plain.logits, atol=1e-5, rtol=1e-4)

    def test_one_image_in_training(self):
        assert self.make().train()(*example(1)).indices.shape[0] == 1

    def test_too_many_experts_a_image_is_told(self):
        with pytest.raises(ValueError, match="top_k=5"):
            self.make(top_k=5)

    def test_info_for_users(self):
        info = self.make().eval()(*example()).as_info()
        assert info["expert_names"] == list(NAMES)
        assert info["top_k_indices"].shape == info["top_k_weights"].shape
        assert info["probabilities"].shape == info["logits"].shape == (5, 4)

import pytest
import torch
from router_tester import RouterTester, example


class TestUniformRouter(RouterTester):
    type = "UniformRouter"
    top_k = None

    def test_all_with_equal_weight(self):
        d = self.make()(*example())
        assert d.indices.shape == (5, 4)
        torch.testing.assert_close(d.weights, torch.full((5, 4), 0.25))

    def test_fewer_than_all_is_told(self):
        with pytest.raises(ValueError, match="leave top_k out"):
            self.make(top_k=2)
        assert self.make(top_k=4).top_k == 4


class TestFixedRouter(RouterTester):
    type = "FixedRouter"
    miniature = dict(weights=dict(pranet=1.0, ujsc=3.0))
    top_k = None

    def test_named_experts_get_their_share(self):
        d = self.make()(*example())
        assert d.indices.tolist() == [[3, 1]] * 5
        torch.testing.assert_close(d.weights, torch.tensor([[0.75, 0.25]] * 5))
        expected = torch.tensor([[0, 0.25, 0, 0.75]] * 5)
        torch.testing.assert_close(d.probabilities, expected)

    def test_an_inherited_weight_can_be_taken_away(self):
        d = self.make(weights=dict(pranet=1.0, ujsc=None))(*example())
        assert d.indices.tolist() == [[1]] * 5

    def test_unknown_and_impossible_weights_are_told(self):
        with pytest.raises(ValueError, match=r"router.weights='pranett'.*'pranet'"):
            self.make(weights=dict(pranett=1.0))
        for weights in (dict(pranet=0.0), dict(pranet=-1.0), dict(pranet=1.0, ujsc=-1.0)):
            with pytest.raises(ValueError, match="positive"):
                self.make(weights=weights)
        with pytest.raises(ValueError, match="top_k=1"):
            self.make(top_k=1)
        with pytest.raises(ValueError):
            self.make(weights={})


class TestStaticRouter(RouterTester):
    type = "StaticRouter"

    def test_all_experts_with_equal_weight_before_training(self):
        d = self.make(top_k=None)(*example())
        torch.testing.assert_close(d.weights, torch.full((5, 4), 0.25))

    def test_it_learns_weights_and_gives_every_image_the_same(self):
        router = self.make(top_k=None).train()
        optimizer = torch.optim.Adam(router.parameters(), lr=0.1)
        quality = torch.tensor([0.1, 0.9, 0.3, 0.2])
        for _ in range(50):
            d = router(*example())
            by_expert = torch.zeros(5, 4).scatter(1, d.indices, d.weights)
            loss = -(by_expert * quality).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        d = router.eval()(*example())
        assert d.indices[:, 0].tolist() == [1] * 5 and d.weights[0, 0] > 0.8
        assert (d.logits == d.logits[0]).all()


class TestRandomRouter(RouterTester):
    type = "RandomRouter"

    def test_a_seed_repeats_a_run_and_draws_advance_it(self):
        inputs = example(32)
        first, second = self.make(seed=3), self.make(seed=3)
        a, b = first(*inputs).indices, second(*inputs).indices
        assert torch.equal(a, b)
        assert not torch.equal(a, first(*inputs).indices)
        assert not torch.equal(a, self.make(seed=4)(*inputs).indices)

    def test_its_draws_do_not_disturb_the_global_ones(self):
        router, inputs = self.make(), example()
        state = torch.get_rng_state()
        router(*inputs)
        assert torch.equal(state, torch.get_rng_state())

    def test_every_expert_gets_its_share(self):
        images = torch.zeros(2000, 3, 1, 1)
        counts = self.make()(images, []).indices.flatten().bincount(minlength=4) / 4000
        assert (counts - 0.25).abs().max() < 0.03

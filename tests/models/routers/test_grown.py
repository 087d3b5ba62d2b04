import torch
from router_tester import CHANNELS, NAMES, RouterTester, example

from codmoe.models.routers import EvidenceRouter, GrownRouter, StaticRouter


class TestGrownRouter(RouterTester):
    type = "GrownRouter"

    def make(self, old=None, newcomer="pranet", **kwargs):
        names = kwargs.pop("expert_names", NAMES)
        before = [name for name in names if name != newcomer]
        shared = dict(in_channels=CHANNELS, width=8, noise=1.0)
        old = old or EvidenceRouter(expert_names=before, top_k=2, **shared)
        evidence = EvidenceRouter(expert_names=[newcomer], top_k=1, **shared)
        return GrownRouter(old, evidence, **{**dict(expert_names=names, top_k=2), **kwargs})


def test_old_logits_stay_and_the_newcomer_stands_against_them_all():
    old = StaticRouter(in_channels=CHANNELS, expert_names=("sinet", "zoomnet", "ujsc"), top_k=2)
    with torch.no_grad():
        old.static_logits.copy_(torch.tensor([30.0, -1.0, 29.0]))
    router = TestGrownRouter().make(old=old).eval()
    images, pyramid = example()
    before = router(images, pyramid)
    assert torch.equal(before.logits[:, [0, 2, 3]], old.score(images, pyramid))
    # e to the power of -10 against all others together, wherever these lie.
    torch.testing.assert_close(
        before.probabilities[:, 1], torch.full((5,), 4.54e-5), rtol=1e-3, atol=0
    )
    assert not (before.indices == 1).any()
    assert torch.equal(before.weights, old(images, pyramid).weights)
    with torch.no_grad():
        router.evidence.fuse[-1].bias.fill_(3.0)
    after = router(images, pyramid)
    torch.testing.assert_close(after.probabilities[:, 1], torch.full((5,), 3.0).sigmoid())
    assert (after.indices[:, 0] == 1).all()


def test_a_branch_is_switched_off_in_both_parts():
    router = TestGrownRouter().make().eval()
    for part in (router.old, router.evidence):
        torch.nn.init.normal_(part.fuse[-1].weight, std=0.1)
        for norm in part.norms.values():
            torch.nn.init.normal_(norm.bias)
    images, pyramid = example()
    less, before = router.without(images, pyramid), router.old.without(images, pyramid)
    assert list(less) == ["texture", "edge", "context", "frequency"]
    odds = router.evidence.without(images, pyramid)
    for name, logits in less.items():
        assert torch.equal(logits[:, [0, 2, 3]], before[name])
        expected = before[name].logsumexp(1) + odds[name][:, 0]
        assert torch.equal(logits[:, 1], expected)
    old = StaticRouter(in_channels=CHANNELS, expert_names=router.old.expert_names, top_k=2)
    router = TestGrownRouter().make(old=old).eval()
    for logits in router.without(images, pyramid).values():
        assert torch.equal(logits[:, [0, 2, 3]], old.score(images, pyramid))


def test_noise_is_that_of_the_old_router():
    router = TestGrownRouter().make()
    assert router.noise_at(0.0) == 1.0 and router.noise_at(1.0) == 0.0

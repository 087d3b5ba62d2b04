import torch
from expert_tester import PVT_V2_B2, ExpertTester, millions, nudge_zeros

from codmoe.models.experts.ujsc import ConfidenceEstimator, HolisticAttention


class TestUJSC(ExpertTester):
    type = "UJSCExpert"
    miniature = dict(channels=16, confidence_channels=16)
    side_maps = 1
    gradient_free = ("key.bias",)  # softmax does not see a constant on all keys

    def gradients(self, *terms):
        expert, images, pyramids, target = self.example()
        nudge_zeros(expert)
        losses = expert.train().loss(expert(images, pyramids), target, 0.5)
        sum(losses[t] for t in terms).backward()
        moved = {n for n, p in expert.named_parameters() if p.grad is not None and p.grad.any()}
        judge = {n for n in moved if n.startswith("confidence.")}
        return moved - judge, judge, len(list(expert.confidence.parameters()))

    def test_adversarial_term_teaches_the_decoder_alone(self):
        decoder, judge, _ = self.gradients("adversarial")
        assert any(n.startswith("refined.head") for n in decoder)
        assert any(n.startswith("reduce") for n in decoder)
        assert not judge

    def test_discriminator_loss_teaches_the_discriminator_alone(self):
        decoder, judge, count = self.gradients("confidence")
        assert not decoder
        assert len(judge) == count

    def test_adversarial_weight_scales_its_term(self):
        expert, images, pyramids, target = self.example()
        output = expert.eval()(images, pyramids)
        once = expert.loss(output, target, 0.5)["adversarial"]
        expert.adversarial_weight *= 3
        torch.testing.assert_close(expert.loss(output, target, 0.5)["adversarial"], 3 * once)


class TestUJSCDense(TestUJSC):
    """With the concatenations of the released code."""

    miniature = dict(TestUJSC.miniature, dense=True)

    def test_size_at_default_and_published_width(self):
        assert 13.5 <= millions(self.make(PVT_V2_B2, dense=True)) <= 16.5

    def test_the_last_stage_reads_all_levels_before_it(self):
        expert = self.make(**self.miniature)
        widths = [stage[1].conv.in_channels for stage in expert.initial.stages]
        assert widths == [2 * 16, 3 * 16, 4 * 16]


def test_discriminator_learns_to_tell_prediction_from_truth():
    judge = ConfidenceEstimator(16)
    images, target = torch.randn(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    target[..., 8:20, 8:20] = 1
    vague = torch.full_like(target, 0.4)
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        judge.own_loss(images, vague, target).backward()
        optimizer.step()
    assert judge(images, target).sigmoid().mean() > 0.8
    assert judge(images, vague).sigmoid().mean() < 0.2
    assert judge.adversarial_loss(images, target) < judge.adversarial_loss(images, vague)


def test_holistic_attention_gates_between_zero_and_one():
    attention = HolisticAttention(size=7, sigma=1.5)
    logits = torch.full((1, 1, 32, 32), -12.0)
    logits[..., 10:16, 10:16] = 12.0
    gate = attention(logits, torch.ones(1, 2, 32, 32))
    assert gate.min() >= 0 and gate.max() <= 1
    assert (gate >= logits.sigmoid()).all()
    assert gate[..., 10:16, 10:16].min() > 0.99
    assert 0.01 < gate[0, 0, 9, 12] < 0.99  # the blur lets the surroundings in
    assert gate[..., 24:, 24:].max() < 1e-3
    constant = attention(torch.zeros(1, 1, 8, 8), torch.ones(1, 2, 16, 16))
    assert torch.isfinite(constant).all() and constant.min() >= 0.5 and constant.max() <= 1

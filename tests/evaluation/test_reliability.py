"""Expected calibration error, and the temperature and offset that lower it."""

import pytest
import torch

from codmoe.evaluation.reliability import expected_calibration_error, fit_calibration, reliability


def drawn(temperature=1.0, offset=0.0, count=6):
    """Logits of ``count`` images, and truths of which they are right under that calibration."""
    torch.manual_seed(0)
    logits = [torch.randn(90 + i, 120) * 3 for i in range(count)]
    honest = [(x / temperature + offset).sigmoid() for x in logits]
    return logits, [torch.bernoulli(p) for p in honest]


def error(logits, truths):
    return expected_calibration_error(
        torch.stack(
            [reliability(x.sigmoid(), y) for x, y in zip(logits, truths, strict=True)]
        ).mean(0)
    )


def test_the_error_by_hand():
    prob, truth = torch.tensor([[0.9, 0.9, 0.1, 0.1]]), torch.tensor([[1, 0, 0, 0]])
    # Two bins of half the pixels: .9 against .5, .1 against 0.
    assert expected_calibration_error(reliability(prob, truth)) == pytest.approx(0.25)
    assert expected_calibration_error(reliability(truth.float(), truth)) == 0


def test_what_spoilt_the_probabilities_is_found():
    logits, truths = drawn(temperature=2.5, offset=-0.7)
    temperature, offset = fit_calibration(logits, truths)
    assert temperature == pytest.approx(2.5, rel=0.1) and offset == pytest.approx(-0.7, abs=0.1)
    mended = [x / temperature + offset for x in logits]
    assert error(logits, truths) > 0.1 and error(mended, truths) < 0.02


def test_a_map_of_more_pixels_than_float32_counts():
    many = torch.zeros(2**24 + 4, dtype=torch.uint8)
    many[-1] = 1
    assert fit_calibration([many], [many])[1] < 0


def test_what_is_honest_stays():
    temperature, offset = fit_calibration(*drawn())
    assert temperature == pytest.approx(1, rel=0.05) and abs(offset) < 0.05
    with pytest.raises(ValueError, match="needs validation images"):
        fit_calibration([], [])

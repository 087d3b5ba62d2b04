import pytest
import torch

from codmoe.models.tta import AugmentedMoE, check_scales
from codmoe.structures import CODDataSample


@pytest.fixture
def images(batch):
    return batch(2, 64, 64)[0]


@torch.no_grad()
def predicted(model, images):
    samples = [CODDataSample(metainfo=dict(ori_shape=(50, 70))) for _ in images]
    return model(images, samples, mode="predict")


def test_one_plain_view_is_the_model_itself(make_model, images):
    model = make_model(evaluate_all_experts=True)
    before = predicted(model, images)
    views = AugmentedMoE(model, (64, 64))
    assert views.input_size == (64, 64)
    for one, other in zip(before, predicted(model, images), strict=True):
        torch.testing.assert_close(one.pred_prob, other.pred_prob, atol=1e-5, rtol=0)
        for name, values in one.expert_probs.items():
            torch.testing.assert_close(values, other.expert_probs[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(one.routing["weights"], other.routing["weights"])


def test_mirrored_images_get_mirrored_maps(make_model, images):
    """Which no network does by itself, and the mean of both views does exactly."""
    model = make_model(evaluate_all_experts=True)
    with torch.no_grad():
        alone = [model(x).sigmoid() for x in (images, images.flip(-1))]
        assert (alone[0] - alone[1].flip(-1)).abs().max() > 1e-3
        AugmentedMoE(model, (64, 64), flip=True)
        both = [model(x).sigmoid() for x in (images, images.flip(-1))]
    torch.testing.assert_close(both[0], both[1].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[0], (alone[0] + alone[1].flip(-1)) / 2, atol=1e-5, rtol=0)


def test_scales_are_averaged_and_experts_too(make_model, batch):
    model = make_model(evaluate_all_experts=True)
    views = AugmentedMoE(model, (80, 64), scales=(1.25, 1, 0.5))
    assert views.sizes == [(32, 32), (64, 80), (64, 96)] and views.input_size == (96, 64)
    (sample,) = predicted(model, batch(1, 64, 96)[0])
    assert sample.pred_prob.shape == (50, 70)
    maps = torch.stack([sample.pred_prob, *sample.expert_probs.values()])
    assert torch.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1
    assert list(sample.expert_probs) == list(model.expert_names)


def test_in_training_the_model_runs_as_it_is(make_model, batch):
    model, (images, targets) = make_model(), batch(2, 64, 64)
    AugmentedMoE(model, (64, 64), flip=True)
    before = model.run_state.prepared.mixture
    model.run_state.prepared.mixture = None  # would be called
    model.train()(images, targets=targets, mode="loss")
    model.run_state.prepared.mixture = before


@pytest.mark.parametrize("scales", [(), (0,), (1, float("nan")), (1, -1)])
def test_scales_are_factors(scales):
    with pytest.raises(ValueError, match="give factors from"):
        check_scales(scales)

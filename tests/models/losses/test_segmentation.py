import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codmoe.models.losses import (
    SoftIoULoss,
    StructureLoss,
    UncertaintyAwareLoss,
    iou_per_image,
    segmentation,
)
from codmoe.models.losses.segmentation import boundary_weight


def example():
    logits = 2 * torch.randn(2, 1, 40, 48)
    target = torch.zeros(2, 1, 40, 48)
    target[0, :, 10:25, 12:30] = 1
    target[1, :, 0:8, 40:48] = 1
    return logits, target


def reference(logits, target, weighted=True):
    """Structure loss in float64, written out."""
    total = 0.0
    for x, g in zip(logits.double().numpy()[:, 0], target.double().numpy()[:, 0], strict=True):
        padded = np.pad(g, 15)
        mean = np.array(
            [[padded[i : i + 31, j : j + 31].sum() / 961 for j in range(g.shape[1])]
             for i in range(g.shape[0])]
        )  # fmt: skip
        w = 1 + 5 * np.abs(mean - g) if weighted else np.ones_like(g)
        p = 1 / (1 + np.exp(-x))
        bce = -(g * np.log(p) + (1 - g) * np.log(1 - p))
        inter, union = (p * g * w).sum(), ((p + g) * w).sum()
        total += (w * bce).sum() / w.sum() + 1 - (inter + 1) / (union - inter + 1)
    return total / len(logits)


def test_structure_loss_against_a_reference_in_float64():
    logits, target = example()
    assert StructureLoss()(logits, target).item() == pytest.approx(
        reference(logits, target), rel=1e-5
    )


def test_the_boundary_weights_change_the_result():
    # The famous `reduce='none'` averages first and so gives the unweighted cross entropy.
    logits, target = example()
    weighted = StructureLoss()(logits, target).item()
    assert abs(weighted - reference(logits, target, weighted=False)) > 0.01
    cancelled = (
        weighted - reference(logits, target) + F.binary_cross_entropy_with_logits(logits, target)
    )
    assert abs(weighted - cancelled.item()) > 0.01


def test_an_error_at_the_boundary_costs_more():
    target = torch.zeros(1, 1, 96, 96)
    target[..., 20:70, 20:70] = 1
    inside, edge = (torch.where(target > 0, 6.0, -6.0) for _ in range(2))
    inside[..., 43:47, 43:47] *= -1
    edge[..., 20:24, 20:24] *= -1
    assert StructureLoss()(edge, target) > 1.3 * StructureLoss()(inside, target)
    weight = boundary_weight(target)
    assert weight.min() >= 1 and weight.max() <= 6
    assert weight[0, 0, 20, 20] > weight[0, 0, 45, 45]


def test_structure_loss_at_its_ends():
    _, target = example()
    sure = torch.where(target > 0, 20.0, -20.0)
    loss = StructureLoss()
    assert loss(sure, target) < 1e-4
    assert loss(-sure, target) > 15
    empty = torch.zeros_like(target)
    assert loss(torch.full_like(target, -20.0), empty) < 1e-3
    assert torch.isfinite(loss(sure, empty))


def test_structure_loss_resizes_and_weighs():
    logits, target = example()
    small = F.interpolate(logits, (10, 12))
    full = F.interpolate(small, (40, 48), mode="bilinear", align_corners=False)
    assert StructureLoss()(small, target) == StructureLoss()(full, target)
    torch.testing.assert_close(
        StructureLoss(weight=3.0)(logits, target), 3 * StructureLoss()(logits, target)
    )


def test_structure_loss_in_half_precision_at_full_size():
    logits = torch.full((1, 1, 448, 448), 5.0)
    target = torch.ones(1, 1, 448, 448)
    half = StructureLoss()(logits.half(), target.half())
    torch.testing.assert_close(half, StructureLoss()(logits, target), atol=1e-3, rtol=1e-3)


def test_soft_iou_loss_by_hand_and_at_its_ends():
    logits, target = example()
    p = logits.sigmoid().double()
    inter = (p * target).sum((1, 2, 3))
    union = (p + target - p * target).sum((1, 2, 3))
    wanted = (1 - (inter + 1) / (union + 1)).mean().item()
    assert SoftIoULoss(weight=2.0)(logits, target).item() == pytest.approx(2 * wanted, rel=1e-5)
    # Sure maps: the IoU that is measured.
    sure = 200 * (logits - 0.5)
    measured = 1 - iou_per_image(sure, target).mean().item()
    assert SoftIoULoss()(sure, target).item() == pytest.approx(measured, abs=0.01)
    nothing = torch.zeros(1, 1, 40, 48)
    assert SoftIoULoss()(nothing - 200, nothing).item() == pytest.approx(0, abs=1e-6)
    # Smaller maps are resized, and sums of a full image do not overflow half precision.
    assert SoftIoULoss()(logits[..., ::2, ::2], target).ndim == 0
    large = torch.full((1, 1, 448, 448), 5.0, dtype=torch.float16)
    assert SoftIoULoss()(large, torch.ones(1, 1, 448, 448)).item() < 0.01


def test_soft_iou_loss_counts_a_thin_object_as_much_as_a_large_one():
    target = torch.zeros(2, 1, 40, 48)
    target[0, :, 20, 5:25] = 1  # 20 pixels
    target[1, :, 5:35, 4:44] = 1  # 1,200
    logits = (20 * target - 10).requires_grad_()
    missed = torch.full_like(target, -10.0)
    losses = [
        SoftIoULoss()(torch.stack(pair), target).item()
        for pair in ((missed[0], logits[1]), (logits[0], missed[1]))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    uneven = [
        F.binary_cross_entropy_with_logits(torch.stack(pair), target).item()
        for pair in ((missed[0], logits[1]), (logits[0], missed[1]))
    ]
    assert uneven[1] > 10 * uneven[0]
    SoftIoULoss()(logits, target).backward()
    assert logits.grad.abs().sum() > 0


def test_uncertainty_loss_grows_from_zero_to_its_reference():
    logits, _ = example()
    loss = UncertaintyAwareLoss(weight=2.0)
    full = 2 * (1 - (2 * logits.double().sigmoid() - 1).abs() ** 2).mean().item()
    assert loss(logits, 0.0) == 0
    assert loss(logits, 1.0).item() == pytest.approx(full, rel=1e-5)
    assert loss(logits, 0.5).item() == pytest.approx(full / 2, rel=1e-5)
    assert loss(logits, 0.25).item() == pytest.approx(full * (1 - 0.5**0.5) / 2, rel=1e-5)
    assert loss(logits, 1.7).item() == pytest.approx(full, rel=1e-5)
    assert loss(logits, -0.2) == 0


def test_uncertainty_loss_pushes_away_from_the_middle():
    logits = torch.tensor([-0.5, 0.5]).view(1, 1, 1, 2).requires_grad_()
    UncertaintyAwareLoss()(logits, 1.0).backward()
    assert logits.grad[..., 0] > 0 and logits.grad[..., 1] < 0


def test_iou_per_image_by_hand():
    target = torch.zeros(5, 1, 4, 4)
    target[:3, :, :2] = 1  # 8 pixels in the first three, none in the others
    logits = torch.full((5, 1, 4, 4), -3.0)
    logits[0, :, :2] = 3
    logits[1, :, 1:3] = 3  # 4 common, 12 in all
    logits[3, :, 0, 0] = 3
    iou = iou_per_image(logits.requires_grad_(), target)
    torch.testing.assert_close(iou, torch.tensor([1.0, 4 / 12, 0.0, 0.0, 1.0]))
    assert not iou.requires_grad


def test_iou_per_image_resizes_the_logits():
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4] = 1
    logits = torch.tensor([5.0, -5.0]).view(1, 1, 1, 2)
    assert iou_per_image(logits, target).item() == 1


def test_several_maps_cost_what_each_costs_alone():
    target = example()[1]
    maps = [torch.randn(2, 1, *size, requires_grad=True) for size in ((40, 48), (10, 12), (5, 6))]
    together = StructureLoss(weight=0.5).of_maps(maps, target)
    assert len(together) == 3
    for logits, ours in zip(maps, together, strict=True):
        upsampled = F.interpolate(logits.detach(), (40, 48), mode="bilinear")
        assert ours.item() == pytest.approx(0.5 * reference(upsampled, target), rel=1e-5)
        alone = StructureLoss(weight=0.5)(logits, target)
        ours, alone = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (ours, alone))
        torch.testing.assert_close(ours, alone)


def test_the_weights_of_a_ground_truth_are_computed_once(monkeypatch):
    calls = []

    def counted(target, kernel=31):
        calls.append(kernel)
        return boundary_weight(target, kernel)

    monkeypatch.setattr(segmentation, "boundary_weight", counted)
    logits, target = example()
    before = StructureLoss()(logits, target)
    assert StructureLoss()(logits, target) == before and calls == [31]
    StructureLoss(kernel=15)(logits, target)
    assert calls == [31, 15]
    target[0] = 0  # changed in place: the weights are others now
    assert StructureLoss()(logits, target) != before and calls == [31, 15, 31]
    with torch.inference_mode():
        StructureLoss()(logits, target.clone())
    kept = len(segmentation._weights_of)
    del target
    assert len(segmentation._weights_of) == kept - 1

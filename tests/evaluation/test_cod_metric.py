import logging

import numpy as np
import pytest
import torch
from miniature import ranks
from mmengine.evaluator import Evaluator
from PIL import Image

from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.evaluation import CODMetric, iou_and_dice
from codmoe.evaluation.measures import TRUTHS
from codmoe.registry import METRICS
from codmoe.structures import CODDataSample

NAMES = ["sinet", "pranet"]


def sample(index, dataset="CAMO", experts=True, height=17, width=23):
    generator = torch.Generator().manual_seed(index)
    gt = torch.zeros(height, width, dtype=torch.uint8)
    gt[4:12, 5 : 10 + index] = 1
    maps = [
        (0.3 * gt + 0.6 * torch.rand(height, width, generator=generator) + shift).clamp(0, 1)
        for shift in ((-0.3, 0.0) if index % 2 else (0.0, -0.3))
    ]
    element = CODDataSample(metainfo={"stem": f"img{index}", "dataset": dataset})
    element.gt_mask = gt
    element.pred_prob = 0.7 * maps[0] + 0.3 * maps[1]
    if experts:
        element.expert_probs = dict(zip(NAMES, maps, strict=True))
    return element


def run(metric, samples, size=None):
    metric.process(None, samples)
    return metric.evaluate(size or len(samples))


def iou(prob, element):
    return iou_and_dice(prob, element.gt_mask)[0]


def test_mixture_of_one_data_set():
    samples = [sample(i, experts=False) for i in range(3)]
    metric = METRICS.build({"type": "CODMetric"})
    scalars = run(metric, samples)
    assert scalars["IoU"] == pytest.approx(sum(iou(s.pred_prob, s) for s in samples) / 3)
    assert {"Sm", "maxFm", "mDice"} <= set(scalars)
    assert not any("/" in key or "loss" in key for key in scalars)
    row = metric.table["CAMO"]["mixture"]
    assert row["n"] == 3
    assert row["images"]["img1"]["IoU"] == pytest.approx(iou(samples[1].pred_prob, samples[1]))


def test_measures_by_name(tmp_path):
    samples = [sample(i, experts=False) for i in range(2)]
    metric = METRICS.build({"type": "CODMetric", "extra": ["CM", "CCM"]})
    with pytest.raises(ValueError, match="no `img_path`; extra='CCM' reads the image"):
        metric.process(None, samples)
    for element in samples:
        path = tmp_path / f"{element.stem}.png"
        # Of a size a few pixels off its mask's.
        Image.fromarray(np.full((19, 24, 3), 90, np.uint8)).save(path)
        element.set_metainfo({"img_path": str(path)})
    scalars = run(METRICS.build({"type": "CODMetric", "extra": ["CM", "CCM"]}), samples)
    assert 0 < scalars["CM"] < 1 and 0 < scalars["CCM"] < 1 and "HCE" not in scalars
    with pytest.raises(ValueError, match="extra=CM needs full=True"):
        CODMetric(full=False, extra="CM")


def test_through_mmengines_evaluator():
    evaluator = Evaluator(
        [{"type": "codmoe.CODMetric", "full": False, "sources": "all", "prefix": "val"}]
    )
    samples = [sample(i) for i in range(2)]
    evaluator.process(samples)
    scalars = evaluator.evaluate(2)
    assert {"val/IoU", "val/sinet/IoU", "val/uniform/MAE", "val/oracle/Dice"} <= set(scalars)
    assert "val/Sm" not in scalars


def test_all_sources_by_hand():
    samples = [sample(i) for i in range(4)]
    scalars = run(CODMetric(full=False, sources="all"), [s.to_dict() for s in samples])
    each = [[iou(s.expert_probs[name], s) for name in NAMES] for s in samples]
    uniform = [iou(sum(s.expert_probs.values()) / 2, s) for s in samples]
    assert len({row.index(max(row)) for row in each}) == 2  # the oracle really alternates
    for column, name in enumerate(NAMES):
        expected = sum(row[column] for row in each) / 4
        assert scalars[f"{name}/IoU"] == pytest.approx(expected)
    assert scalars["oracle/IoU"] == pytest.approx(sum(map(max, each)) / 4)
    assert scalars["uniform/IoU"] == pytest.approx(sum(uniform) / 4)


def test_order_of_sources_does_not_matter():
    samples = [sample(i) for i in range(3)]
    one = run(CODMetric(sources=("oracle", "pranet", "pranet")), samples)
    other = run(CODMetric(sources=("pranet", "oracle")), samples)
    assert one == other and "IoU" not in one


def test_several_data_sets():
    samples = [sample(0), sample(1), sample(2, "NC4K"), sample(3, "NC4K"), sample(4, "NC4K")]
    metric = CODMetric(full=False, sources=("mixture", "sinet"))
    scalars = run(metric, samples)
    camo, nc4k, every = (scalars[key] for key in ("CAMO/IoU", "NC4K/IoU", "IoU"))
    assert every == pytest.approx((2 * camo + 3 * nc4k) / 5)
    assert scalars["NC4K/sinet/IoU"] == metric.table["NC4K"]["sinet"]["IoU"]
    assert {name: rows["sinet"]["n"] for name, rows in metric.table.items()} == {
        "CAMO": 2,
        "NC4K": 3,
    }


def test_equal_stems_do_not_hide_one_another():
    metric = CODMetric(full=False)
    run(metric, [sample(1), sample(1)])
    assert list(metric.table["CAMO"]["mixture"]["images"]) == ["img1", "img1#2"]


def test_nothing_is_carried_to_the_next_epoch():
    metric = CODMetric(full=False)
    run(metric, [sample(i) for i in range(3)])
    run(metric, [sample(5)])
    assert list(metric.table["CAMO"]["mixture"]["images"]) == ["img5"]


def test_mistakes_are_named():
    bare = sample(0, experts=False)
    for source in ("all", "uniform", "oracle", "sinet"):
        with pytest.raises(ValueError, match=r"model\.evaluate_all_experts=True"):
            CODMetric(sources=source).process(None, [bare])
    with pytest.raises(ValueError, match="did you mean 'sinet'"):
        CODMetric(sources=["mixture", "sinnet"]).process(None, [sample(0)])
    with pytest.raises(ValueError, match="did you mean 'pranet'"):
        bare.routing = {"expert_names": NAMES}
        CODMetric(sources="prannet").process(None, [bare])
    del bare.gt_mask
    with pytest.raises(ValueError, match="'img0' has no `gt_mask`; load masks"):
        CODMetric().process(None, [bare])
    with pytest.raises(ValueError, match="sources is empty"):
        CODMetric(sources=())


def test_pysodmetrics_as_a_cross_check():
    samples = [sample(i) for i in range(3)]
    ours, theirs = CODMetric(sources="all"), CODMetric(sources="all", backend="pysodmetrics")
    assert run(ours, samples) == pytest.approx(run(theirs, samples), abs=1e-6)
    row = theirs.table["CAMO"]["sinet"]
    assert len(row["curves"]["Recall"]) == 256 == len(row["curves"]["threshold"])
    assert row["curves"]["Fm"] == pytest.approx(
        ours.table["CAMO"]["sinet"]["curves"]["Fm"], abs=2e-6
    )
    with pytest.raises(ValueError, match="did you mean 'pysodmetrics'"):
        CODMetric(backend="pysodmetric")


def test_the_map_at_fault_is_named():
    samples = [sample(i) for i in range(3)]
    samples[1].expert_probs["pranet"][3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"image 'img1' of CAMO, pranet: The prediction ranges ov"):
        CODMetric(sources=["sinet", "pranet"]).process(None, samples)
    samples[2].pred_prob = samples[2].pred_prob[:-1]
    with pytest.raises(ValueError, match=r"image 'img2' of CAMO, mixture: .* resize the predicti"):
        CODMetric().process(None, samples)


def test_memory_for_truths_is_set(monkeypatch):
    monkeypatch.setattr(TRUTHS, "max_bytes", 123)
    CODMetric()
    assert TRUTHS.max_bytes == 123
    CODMetric(cache_gb=0.5)
    assert TRUTHS.max_bytes == 2**29
    with pytest.raises(ValueError, match="cache_gb=-1; it must not be negative"):
        CODMetric(cache_gb=-1)


def test_truths_are_kept_from_one_epoch_to_the_next():
    samples, metric = [sample(i, height=31) for i in range(3)], CODMetric(full=False)
    run(metric, samples)
    misses = TRUTHS.misses
    run(metric, samples)
    run(CODMetric(sources="all"), samples)
    assert TRUTHS.misses == misses


def test_too_few_images_are_reported(monkeypatch):
    said = []
    monkeypatch.setattr(
        "codmoe.evaluation.cod_metric.print_log", lambda text, **kw: said.append((text, kw))
    )
    run(CODMetric(full=False), [sample(0)], size=2)
    assert said[0][1]["level"] == logging.WARNING and "1 of 2 images" in said[0][0]
    run(CODMetric(full=False), [sample(0)], size=1)
    assert len(said) == 1


def _rank(rank, folder):
    import os

    import torch.distributed as dist

    os.chdir(folder)  # the exchange folder is made in the working directory
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    # What DefaultSampler gives for 7 images on 2 ranks: 0 2 4 6 and 1 3 5 with 0 as padding.
    order = [i % 7 for i in range(8)][rank::2]
    for device in ("cpu", "gpu"):
        metric = CODMetric(full=True, sources="all", collect_device=device)
        for start in range(0, 4, 3):
            metric.process(None, [sample(i) for i in order[start : start + 3]])
        scalars = metric.evaluate(7)
        torch.save((scalars, metric.table), f"{folder}/{device}{rank}.pt")
    leave_cpu_process_group()


def test_seven_images_on_two_ranks(tmp_path):
    ranks(_rank, str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()} - {"rendezvous"}
    assert left == {f"{device}{rank}.pt" for device in ("cpu", "gpu") for rank in range(2)}
    alone = CODMetric(full=True, sources="all")
    expected = run(alone, [sample(i) for i in range(7)])
    for device in ("cpu", "gpu"):
        (first, table), (second, empty) = (
            torch.load(tmp_path / f"{device}{rank}.pt", weights_only=False) for rank in range(2)
        )
        assert first == second == expected
        assert table == alone.table and empty == {}
        assert list(table["CAMO"]["mixture"]["images"]) == [f"img{i}" for i in range(7)]

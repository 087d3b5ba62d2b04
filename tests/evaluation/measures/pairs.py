"""Maps and truths that put measures to the test, and PySODMetrics run as its users run it."""

import warnings

import numpy as np
import py_sod_metrics as sod


def random_pairs(count, seed=0, largest=44):
    """(8-bit map, truth) in which every special case turns up: see the names below."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        height, width = rng.integers(1, largest, 2)
        height, width = (
            (1, width) if k % 19 == 0 else (height, 1) if k % 23 == 0 else (height, width)
        )
        truth = _truth(rng, k, height, width)
        yield _map(rng, k % 10, truth), truth


def _truth(rng, k, height, width):
    if k % 3 == 0:  # a disc, possibly over the border
        y, x = np.mgrid[:height, :width]
        centre = rng.integers(0, (height, width))
        return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.integers(1, 400)
    truth = np.zeros((height, width), bool)
    if k % 13 == 0:  # one pixel
        truth[rng.integers(height), rng.integers(width)] = True
    elif k % 17 == 0:  # the centroid on the border
        truth[:, -1] = True
    else:  # specks, empty and full masks among them
        truth = rng.random((height, width)) < rng.choice([0, 0.02, 0.1, 0.3, 0.6, 0.95, 1])
    return truth


def _map(rng, kind, truth):
    noise = rng.integers(0, 256, truth.shape)
    value = {
        3: np.full(truth.shape, rng.integers(0, 256)),  # constant
        4: noise % 2,  # a {0, 1} mask
        5: rng.choice([0, 128, 255], truth.shape),
        6: np.where(truth, 200, 30),  # right, but of two greys
        7: np.where(truth, 100 + noise // 2, noise % 3 * 20),
        8: truth * 255,  # perfect
        9: np.where(truth, 255, rng.integers(0, 256)),
    }.get(kind, noise)
    return value.astype(np.uint8)


def reference(pairs):
    """PySODMetrics over pairs of 8-bit map and truth: one object over all, then get_results."""
    fm = sod.FmeasureV2(
        {
            "fm": sod.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
            "iou": sod.IOUHandler(with_dynamic=True, with_adaptive=True),
            "dice": sod.DICEHandler(with_dynamic=True, with_adaptive=True),
            "precision": sod.PrecisionHandler(with_dynamic=True, with_adaptive=False),
            "recall": sod.RecallHandler(with_dynamic=True, with_adaptive=False),
        }
    )
    ber = sod.FmeasureV2({"ber": sod.BERHandler(False, False, with_binary=True)})
    sm, wfm, em, mae = sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure(), sod.MAE()
    for level, truth in pairs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of empty quadrants
            for metric in (sm, wfm, em, mae, fm):
                metric.step(level, truth.astype(np.uint8) * 255)
            ber.step(level / 255, truth, normalize=False)
    em, results = em.get_results()["em"], fm.get_results()
    curves = {key: results[key]["dynamic"] for key in results}
    return {
        "Sm": sm.get_results()["sm"],
        "wFm": wfm.get_results()["wfm"],
        "MAE": mae.get_results()["mae"],
        "BER": ber.get_results()["ber"]["binary"],
        "meanEm": em["curve"].mean(),
        "maxEm": em["curve"].max(),
        "adpEm": em["adp"],
        "meanFm": curves["fm"].mean(),
        "maxFm": curves["fm"].max(),
        "adpFm": results["fm"]["adaptive"],
        "mIoU": curves["iou"].mean(),
        "maxIoU": curves["iou"].max(),
        "adpIoU": results["iou"]["adaptive"],
        "mDice": curves["dice"].mean(),
        "maxDice": curves["dice"].max(),
        "adpDice": results["dice"]["adaptive"],
        "curves": np.stack(
            [
                curves["precision"],
                curves["recall"],
                curves["fm"],
                em["curve"],
                curves["iou"],
                curves["dice"],
            ]
        ),
    }

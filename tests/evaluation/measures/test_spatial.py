import dataclasses

import numpy as np
import torch

from codmoe.evaluation.measures import ground_truth
from codmoe.evaluation.measures.spatial import (
    boundary_counts,
    sums_by_opencv,
    weighted_errors,
)


def test_what_a_gpu_computes_is_what_opencv_computes():
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape = rng.integers(1, 90, 2)
        probs = rng.random((3, *shape)) ** 0.05
        truths = [ground_truth(mask) for mask in rng.random((3, *shape)) < 0.97]
        wider = dataclasses.replace(truths[1], boundary_width=truths[1].boundary_width + 2)
        truths[1] = wider  # images of several sizes have bands of several widths
        codes = torch.from_numpy(np.stack([truth.codes for truth in truths]))
        levels, values = np.rint(probs * 255).astype(np.uint8), np.arange(256) / 255
        errors = torch.from_numpy(np.abs(values[levels] - [truth.mask for truth in truths]))
        ours = torch.cat(
            [
                weighted_errors(errors, codes, truths),
                boundary_counts(torch.from_numpy(probs > 0.5), codes, truths),
            ],
            dim=1,
        )
        each = zip(probs, levels, truths, strict=True)
        theirs = [sums_by_opencv(prob, level, values, truth) for prob, level, truth in each]
        torch.testing.assert_close(
            ours, torch.tensor(theirs, dtype=ours.dtype), rtol=3e-7, atol=1e-6
        )

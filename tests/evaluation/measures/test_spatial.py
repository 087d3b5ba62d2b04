import dataclasses

import numpy as np
import torch

from codmoe.evaluation.measures import ground_truth
from codmoe.evaluation.measures.spatial import (
    counts_by_opencv,
    counts_by_torch,
    smooth_by_opencv,
    smooth_by_torch,
)


def test_what_a_gpu_computes_is_what_opencv_computes():
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape = rng.integers(1, 90, 2)
        masks = rng.random((3, *shape)) < 0.97
        truths = [ground_truth(mask) for mask in rng.random((3, *shape)) < 0.97]
        wider = dataclasses.replace(truths[1], boundary_width=truths[1].boundary_width + 2)
        truths[1] = wider  # images of several sizes have bands of several widths
        codes = np.stack([truth.codes for truth in truths])
        theirs = counts_by_opencv(masks, codes, truths)
        ours = counts_by_torch(torch.from_numpy(masks), torch.from_numpy(codes), truths)
        assert torch.equal(ours, theirs)
        values = torch.from_numpy(rng.random((2, *(shape + 6))))
        smooth = smooth_by_torch(values), smooth_by_opencv(values)
        torch.testing.assert_close(*smooth, rtol=0, atol=1e-14)

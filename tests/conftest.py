"""Settings under which miniatures are quick on two cores."""

import gc
import os

# Two workers of pytest on two cores: more threads than cores make OpenMP spin for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yapf.yapflib.yapf_api

import codmoe.engine.launch  # noqa: F401

torch.set_num_threads(1)
# mmengine lays out a config five times a training, which takes as long as all else in a miniature.
yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)
# Nothing imported is ever garbage; mmengine looks for garbage with every data set.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

"""Two workers of pytest on two cores: more threads than cores make OpenMP spin for minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

"""A miniature that predicts, and a folder for it."""

import numpy as np
import pytest
import torch
from miniature import NARROW
from mmengine.config import Config
from PIL import Image

from codmoe.engine.checkpoints import save_weights
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.zoo import create_model

CONFIG = dict(
    model=dict(
        type="ModelLevelMoE",
        backbone=dict(type="TimmPyramid", name="pvt_v2_b0", pretrained=True),
        experts=NARROW,
        router=dict(type="EvidenceRouter", width=16),
        top_k=2,
        evaluate_all_experts=True,
    ),
    test_dataloader=dict(
        dataset=dict(type="CODDataset", pipeline=[dict(type="Resize", scale=(64, 64))])
    ),
)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    config = folder / "miniature.py"
    config.write_text(Config(CONFIG).pretty_text)
    torch.manual_seed(0)
    model = create_model(config)
    path = folder / "mini_best.pth"
    meta = dict(config=config.read_text(), expert_names=list(model.expert_names))
    save_weights(path, model, meta, "run")
    return path


@pytest.fixture(scope="session")
def inferencer(weights):
    return Inferencer(checkpoint=weights, device="cpu", batch_size=2)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "bilder"
    path.mkdir()
    for name, size in (("b.png", (50, 70)), ("a.jpg", (40, 33)), ("ü.png", (31, 90))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path / name)
    (path / ".hidden.png").write_bytes(b"macOS")
    (path / "notes.txt").write_text("no image")
    return path

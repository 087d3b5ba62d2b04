"""8-bit exports: smaller, near the model, of all graphs but the combiner."""

import json

import pytest
import torch

from codmoe import ModelLevelMoE
from codmoe.inference.export.exporting import export
from codmoe.inference.export.onnx_runner import OnnxRunner

SIZE = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    experts = dict(a=dict(type="FPNExpert", channels=16), b=dict(type="FPNExpert", channels=16))
    router = dict(type="EvidenceRouter", width=8, branches=dict(texture=False, edge=False))
    backbone = dict(type="TimmPyramid", name="resnet10t")
    model = ModelLevelMoE(backbone, experts=experts, router=router, top_k=1).train()
    model.train_dispatch = "dense"
    # Which of the two is a matter of rounding for no image.
    torch.nn.init.constant_(model.router.fuse[-1].weight, 0)
    model.router.fuse[-1].bias.data = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for _ in range(5):  # batch norms that have seen images
            images = torch.randint(0, 256, (6, 3, SIZE, SIZE)).float()
            model(model.data_preprocessor(dict(inputs=images))["inputs"])
    return model.eval()


def test_it_is_smaller_and_agrees_with_the_model(model, tmp_path):
    found = export(model, tmp_path / "int8", format="onnx-sparse", size=SIZE, int8=True)
    assert 0 < found["probability"] < 0.02 and found["iou"] > 0.9 and found["choices"] == 1
    export(model, tmp_path / "float", format="onnx-sparse", size=SIZE, check=False)
    runner = OnnxRunner(tmp_path / "int8")
    assert runner.manifest["int8"] and not OnnxRunner(tmp_path / "float").manifest["int8"]
    for key, entry in runner.manifest["files"].items():
        size, before = (
            (tmp_path / each / entry["file"]).stat().st_size for each in ("int8", "float")
        )
        if key == "combiner":
            assert size == before
        else:
            assert size < 0.6 * before, key
    # Expert b, which the router never chooses, has its ranges too.
    known = dict(images=torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8).numpy())
    known |= runner.run_graph("pyramid", known)
    assert runner.run_graph("expert_b", known)["logits"].shape == (1, 1, SIZE, SIZE)
    left = {path.name for path in (tmp_path / "int8").iterdir()}
    assert left == {path.name for path in (tmp_path / "float").iterdir()}


def test_without_a_comparison_it_is_written_all_the_same(model, tmp_path):
    options = dict(format="onnx", size=SIZE, int8=True, check=False)
    assert export(model, tmp_path / "whole", **options) == {}
    assert json.loads((tmp_path / "whole/manifest.json").read_text())["int8"]


@pytest.mark.parametrize("format", ["torch-export", "safetensors"])
def test_other_formats_have_none(model, tmp_path, format):
    with pytest.raises(ValueError, match="the ONNX formats alone have it"):
        export(model, tmp_path / "out", format=format, int8=True)
    assert not (tmp_path / "out").exists()

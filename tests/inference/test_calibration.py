import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from codmoe.cli import command
from codmoe.engine.checkpoints import packed, read_weights, store_threshold
from codmoe.inference.calibration import calibrate
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.zoo import meta_of


@pytest.fixture
def masks(inferencer, folder, tmp_path):
    """Truths that are the model's own maps, cut where it is sure of little."""
    (tmp_path / "masks").mkdir()
    (folder / "notes.txt").unlink()
    for prediction in inferencer(folder):
        cut = (prediction.probability > 0.3).astype(np.uint8) * 255
        Image.fromarray(cut).save(tmp_path / "masks" / f"{prediction.path.stem}.png")
    return tmp_path / "masks"


def test_the_threshold_is_found_and_kept_with_the_weights(
    weights, folder, masks, tmp_path, monkeypatch, capsys
):
    path = shutil.copy(weights, tmp_path / "own_best.pth")
    options = ("--images", folder, "--masks", masks, "--device", "cpu", "--batch-size", 2)
    before, meta = read_weights(path), meta_of(path)
    monkeypatch.setattr("sys.argv", ["codmoe", "calibrate", str(path), *map(str, options)])
    with pytest.raises(SystemExit) as left:
        command()
    assert not left.value.code and "3 images, at 0.5" in capsys.readouterr().out
    found = meta_of(path)["threshold"]
    assert 0.29 < found < 0.45
    assert meta_of(path) == dict(meta, threshold=found)
    torch.testing.assert_close(read_weights(path), before, atol=0, rtol=0)
    inferencer = Inferencer(checkpoint=path, device="cpu")
    assert inferencer.threshold == found
    (one,) = inferencer(folder / "a.jpg")
    np.testing.assert_array_equal(one.mask, one.probability > found)
    (other,) = inferencer(folder / "a.jpg", threshold=0.5)
    assert other.threshold == 0.5


def test_figures_of_a_calibration(inferencer, folder, masks):
    found = calibrate(inferencer, folder, masks)
    assert found["images"] == 3 and found["IoU"] > 0.95 and found["IoU"] >= found["IoU_at_half"]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_in_safetensors_nothing_else_changes(weights, tmp_path, eight_bit):
    path = tmp_path / "small.safetensors"
    state = read_weights(weights)
    path.write_bytes(packed(state, dict(stage="x"), eight_bit=eight_bit))
    before = load_file(path)
    store_threshold(path, 0.25)
    assert meta_of(path) == dict(stage="x", threshold=0.25)
    torch.testing.assert_close(load_file(path), before, atol=0, rtol=0)


def test_a_training_checkpoint_holds_no_threshold(tmp_path):
    torch.save(dict(state_dict={}, optimizer={}, meta={}), tmp_path / "iter_1.pth")
    with pytest.raises(ValueError, match=r"give its \*_best\.pth"):
        store_threshold(tmp_path / "iter_1.pth", 0.5)

import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from miniature import call
from mmcv.transforms import Resize
from PIL import Image, ImageOps
from rich.console import Console

from codmoe.datasets.reading import upright
from codmoe.datasets.transforms import LoadCODPair, PackCODInputs
from codmoe.engine.checkpoints import store_threshold
from codmoe.engine.config import size_of
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.prediction import Prediction
from codmoe.inference.zoo import create_model


def test_a_folder_in_order_at_original_resolution(inferencer, folder):
    assert inferencer.size == (64, 64)
    assert inferencer.model.evaluate_all_experts is False
    predictions = inferencer(folder)
    assert [p.path.name for p in predictions] == ["a.jpg", "b.png", "ü.png"]
    assert [p.probability.shape for p in predictions] == [(40, 33), (50, 70), (31, 90)]
    for p in predictions:
        assert isinstance(p, Prediction) and p.probability.dtype == np.float32
        assert p.probability.min() >= 0 and p.probability.max() <= 1
        assert set(p.weights) == {"sinet", "pranet"}
        assert sum(p.weights.values()) == pytest.approx(1, abs=1e-5)
        assert list(p.weights.values()) == sorted(p.weights.values(), reverse=True)
    assert all(p.weights == {} for p in inferencer(folder, return_routing=False))


def test_the_same_as_the_datasets_pipeline(inferencer, folder):
    """Loading, resizing and normalising as a test run does."""
    path = folder / "b.png"
    results = LoadCODPair()(dict(img_path=str(path)))
    packed = PackCODInputs()(Resize(scale=(64, 64), keep_ratio=False)(results))
    model = inferencer.model
    data = dict(inputs=[packed["inputs"]], data_samples=[packed["data_samples"]])
    with torch.no_grad():
        (sample,) = model(**model.data_preprocessor(data), mode="predict")
    (prediction,) = inferencer(path)
    np.testing.assert_allclose(prediction.probability, sample.pred_prob.numpy(), atol=1e-6)


def test_files_arrays_and_pil_images_agree(inferencer, folder):
    path = folder / "b.png"
    picture = Image.open(path)
    mixed = inferencer([path, str(path), np.asarray(picture), picture])
    assert [p.path for p in mixed] == [path, path, None, None]
    for single in (str(path), np.asarray(picture), picture):
        mixed += inferencer(single)
    for p in mixed:
        # Sums are ordered differently in batches of one and of two, and random weights amplify it.
        np.testing.assert_allclose(p.probability, mixed[0].probability, atol=5e-3)


def test_maps_are_written(inferencer, folder, tmp_path):
    out = tmp_path / "new" / "out"
    first, *_ = inferencer(folder, out_dir=out)
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "ü.png"]
    values = np.asarray(Image.open(out / "a.png"))
    assert values.dtype == np.uint8 and values.shape == (40, 33)
    np.testing.assert_array_equal(values, (first.probability * 255).round().astype(np.uint8))

    cut = float(np.median(first.probability))
    array = cv2.cvtColor(cv2.imread(str(folder / "a.jpg")), cv2.COLOR_BGR2RGB)
    (binary,) = inferencer([array], out_dir=out, threshold=cut)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "0000.png")), binary.mask * 255)
    assert 0 < binary.mask.mean() < 1
    np.testing.assert_array_equal(first.mask, first.probability > 0.5)


def test_an_unreadable_file_is_named_before_anything_is_written(inferencer, folder, tmp_path):
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes()[:-200])
    (folder / "d.jpg").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"c\.png.*d\.jpg"):
        inferencer(folder, out_dir=out)
    assert not out.exists()


def test_faulty_inputs(inferencer, folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        inferencer(empty)
    with pytest.raises(ValueError, match="inputs is empty"):
        inferencer([])
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        inferencer(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="uint8 RGB"):
        inferencer(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="int"):
        inferencer([1])
    with pytest.raises(ValueError, match="is one of the images"):
        inferencer(folder / "b.png", out_dir=folder)
    with pytest.raises(ValueError, match="two inputs would both be 'b'"):
        inferencer([folder / "b.png"] * 2, out_dir=tmp_path / "out")


def test_threads_share_one(inferencer, folder):
    paths = [folder / name for name in ("a.jpg", "b.png", "ü.png")]
    alone = [inferencer(path)[0] for path in paths]

    def ask(number):
        (found,) = inferencer(paths[number % 3], experts=number % 2 == 0)
        return found

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(ask, range(24))):
            np.testing.assert_allclose(found.probability, alone[number % 3].probability, atol=5e-3)
            assert bool(found.expert_maps) == (number % 2 == 0)
            assert found.weights == pytest.approx(alone[number % 3].weights, abs=1e-3)


def test_a_stream_predicts_as_it_goes(inferencer, folder, tmp_path):
    out = tmp_path / "out"
    stream = inferencer.stream(folder, out_dir=out)
    assert next(stream).path.name == "a.jpg"
    assert "a.png" in [p.name for p in out.iterdir()]
    stream.close()


def test_a_long_run_shows_its_progress(inferencer, folder, monkeypatch, capsys):
    def terminal(**options):
        return Console(force_terminal=True, force_interactive=True, **options)

    monkeypatch.setattr("codmoe.inference.inferencer.Console", terminal)
    images = [folder / name for name in ("a.jpg", "b.png", "ü.png")]
    assert len(inferencer(images)) == 3
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("codmoe.inference.inferencer.PATIENCE", 0.0)
    assert len(inferencer(images)) == 3
    assert "predicting" in capsys.readouterr().err


def test_a_bar_that_was_not_shown_leaves_no_line(inferencer, folder, monkeypatch, capsys):
    def piped(**options):
        return Console(force_terminal=False, force_interactive=False, **options)

    monkeypatch.setattr("codmoe.inference.inferencer.Console", piped)
    assert len(inferencer([folder / "a.jpg"])) == 1
    assert capsys.readouterr() == ("", "")


def test_model_and_size(weights):
    model = create_model(checkpoint=weights).train()
    inferencer = Inferencer(model, image_size=96, device="cpu")
    assert inferencer.size == (96, 96) and not model.training
    again = Inferencer(weights.parent / "miniature.py", weights, device="cpu")
    assert again.size == (64, 64)
    with pytest.raises(ValueError, match=r"has no weights; give checkpoint=.* \(--checkpoint"):
        Inferencer("ensemble/stage3")
    with pytest.raises(ValueError, match="batch_size=0"):
        Inferencer(model, batch_size=0)


def test_the_threshold_is_that_of_the_weights_given(weights, tmp_path):
    model = create_model(checkpoint=weights)
    model.cfg.threshold = 0.9  # of the weights that it had
    other = shutil.copy(weights, tmp_path / "other_best.pth")
    store_threshold(other, 0.25)
    assert Inferencer(model, other, device="cpu").threshold == 0.25


def test_several_views_leave_the_model_to_others(inferencer, folder):
    plain = inferencer(folder / "b.png")[0].probability
    both = Inferencer(inferencer.model, device="cpu", flip=True, scales=(1, 1.5))
    assert both.input_size == (96, 96) and both.size == (64, 64)
    assert np.abs(both(folder / "b.png")[0].probability - plain).max() > 1e-3
    np.testing.assert_array_equal(inferencer(folder / "b.png")[0].probability, plain)


def test_size_of():
    def loader(*pipeline, **dataset):
        return dict(dataset=dict(pipeline=list(pipeline), **dataset))

    assert size_of(None) == (448, 448)
    small = dict(type="Resize", scale=(32, 48))
    group = dict(dataset=dict(type="DatasetGroup", datasets=dict(a=loader(small)["dataset"])))
    assert size_of(dict(test_dataloader=group)) == (32, 48)
    assert size_of(dict(val_dataloader=loader(dict(type="Resize", scale=64)))) == (64, 64)
    # Synthetic images are made at their size and not resized.
    assert size_of(dict(test_dataloader=loader(image_size=96), val_dataloader=None)) == (96, 96)


def test_the_command_line(weights, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = (folder, "--checkpoint", weights, "--out", "out", "--device", "cpu")
    assert call(monkeypatch, "predict", *arguments) is None
    said = capsys.readouterr().out
    assert "3 predicted; probability in out" in said and "sinet" in said
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    code = call(monkeypatch, "predict", folder, "--checkpoint", "absent.pth", "--out", "out")
    assert code.startswith("error: ") and "absent.pth does not exist" in code


def test_prepared_as_on_a_cpu_it_predicts_the_same(weights, folder):
    compiled = Inferencer(checkpoint=weights, device="cpu", batch_size=2)
    plain = Inferencer(checkpoint=weights, device="cpu", batch_size=2, compile=False)
    assert plain.prepared is None
    for one, other in zip(plain(folder), compiled(folder), strict=True):
        # Untrained batch norms leave logits of thousands.
        assert np.abs(one.probability - other.probability).max() < 1e-2
        assert one.weights == pytest.approx(other.weights, abs=1e-4)
    # Three images, two at a time: nothing is padded.
    assert {piece.name.partition(" × ")[0] for piece in compiled.prepared.pieces} >= {
        "backbone, 2",
        "backbone, 1",
    }


@pytest.mark.parametrize(
    ("compile", "fault"),
    [("tensorrt", "backend='tensorrt' is unknown"), (dict(dtyp="fp16"), "did you mean 'dtype'")],
)
def test_an_unknown_way_to_compile(weights, compile, fault):
    with pytest.raises(ValueError, match=fault):
        Inferencer(checkpoint=weights, device="cpu", compile=compile)


def test_folders_and_files_are_taken_together_and_what_is_skipped_is_counted(
    inferencer, folder, tmp_path, capsys
):
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    array = np.zeros((20, 30, 3), np.uint8)
    for name in ("x.png", "y.png"):
        Image.fromarray(array).save(other / name)
    (other / "clip.mp4").write_bytes(b"film")
    found = inferencer([folder, other / "y.png", other])
    names = [p.path.name for p in found]
    assert names == ["a.jpg", "b.png", "ü.png", "y.png", "x.png", "y.png"]
    told = capsys.readouterr().err
    assert "2 skipped, since they are no image files: notes.txt, clip.mp4" in told
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be opened as a video"):
        inferencer([folder, other / "clip.mp4"])
    with pytest.raises(ValueError, match=r"holds no images .*; it is empty"):
        inferencer([folder, other / "sub"])


@pytest.mark.parametrize("threshold", [128, -0.1, float("nan")])
def test_a_threshold_is_a_probability(inferencer, folder, threshold):
    with pytest.raises(ValueError, match="cut at a probability, 0 to 1"):
        inferencer(folder, threshold=threshold)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{}", "--threshold", "128"], "threshold=128"),
        (["{}/clip.mp4"], "cannot be opened as a video"),
        (["{}/none.png"], "is no file or folder"),
    ],
)
def test_inputs_are_looked_at_before_weights(folder, tmp_path, monkeypatch, words, told):
    (folder / "clip.mp4").write_bytes(b"film")
    words = [word.format(folder) for word in words]
    (tmp_path / "w.pth").write_bytes(b"none")
    arguments = (*words, "--checkpoint", tmp_path / "w.pth", "--out", tmp_path / "out")
    assert told in str(call(monkeypatch, "predict", *arguments))


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
@pytest.mark.parametrize("tile", [None, 24])
def test_the_network_sees_a_photo_upright_and_its_map_fits_it_as_stored(
    inferencer, folder, tmp_path, monkeypatch, orientation, tile
):
    """So viewers, which turn both, and programs, which turn neither, find that it fits."""
    photo, exif = folder / "turned.png", Image.Exif()
    with Image.open(folder / "b.png") as image:
        exif[0x0112] = orientation
        image.save(photo, exif=exif)
        image.save(folder / "plain.png")
    with Image.open(photo) as image:
        ImageOps.exif_transpose(image).save(folder / "shown.png")
    monkeypatch.setattr(inferencer, "tile", tile)
    files = [photo, folder / "shown.png", folder / "plain.png"]
    turned, shown, _ = inferencer(files, out_dir=tmp_path / "out", experts=True)
    for own, expected in (
        (turned.probability, shown.probability),
        *((turned.expert_maps[name], map_) for name, map_ in shown.expert_maps.items()),
    ):
        np.testing.assert_allclose(upright(own, orientation), expected, atol=1e-5)
    with Image.open(tmp_path / "out" / "turned.png") as map_, Image.open(photo) as image:
        assert map_.size == image.size
        assert ImageOps.exif_transpose(map_).size == ImageOps.exif_transpose(image).size
        assert map_.getexif()[0x0112] == orientation
    with Image.open(tmp_path / "out" / "plain.png") as map_:
        assert not map_.getexif()
    # A sheet with words on it is made of what viewers show.
    sheets = inferencer([photo, folder / "shown.png"], out_dir=tmp_path / "s", save="side-by-side")
    made = [Image.open(tmp_path / "s" / f"{name}.jpg") for name in ("turned", "shown")]
    assert not made[0].getexif() and made[0].size == made[1].size
    left = [np.asarray(sheet)[36:, 8:80].astype(float) for sheet in made]
    assert np.abs(left[0] - left[1]).mean() < 4
    assert sheets[0].probability.shape == turned.probability.shape


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_pil_image_is_turned_as_its_file_is(inferencer, folder, tmp_path, suffix):
    photo, exif = folder / f"turned.{suffix}", Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "b.png") as image:
        image.convert("RGB").save(photo, exif=exif)
    with Image.open(photo) as image:
        (own,) = inferencer(image, out_dir=tmp_path / "own", save=("mask", "side-by-side"))
        size, tag = image.size, image.getexif().get(0x0112)
    (expected,) = inferencer(photo, out_dir=tmp_path / "file", save=("mask", "side-by-side"))
    # Pillow turns a TIFF when it loads it, and leaves the others as they are stored.
    assert tag == (6 if suffix == "png" else None)
    seen = [upright(own.probability, tag or 1), upright(expected.probability, 6)]
    np.testing.assert_allclose(*seen, atol=1e-5)
    with Image.open(tmp_path / "own/mask/0000.png") as map_:
        assert map_.size == size and map_.getexif().get(0x0112) == tag
    sheets = [tmp_path / "own/side-by-side/0000.jpg", tmp_path / "file/side-by-side/turned.jpg"]
    left, right = (np.asarray(Image.open(sheet)).astype(float) for sheet in sheets)
    assert left.shape == right.shape and np.abs(left[36:] - right[36:]).mean() < 4

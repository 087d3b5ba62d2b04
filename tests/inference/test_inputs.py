import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from codmoe.datasets.reading import UnreadableFile
from codmoe.inference.inputs import Item, Video, check_memory, check_readable, collect


def names(items):
    return [item.name for item in items]


def test_a_folder_with_all_that_is_below_it(folder, capsys):
    (folder / "trip" / "day 1").mkdir(parents=True)
    (folder / "trip" / ".thumbs").mkdir()
    (folder / "empty.jpg").mkdir()
    for place in ("trip/day 1", "trip", "trip/.thumbs"):
        (folder / place / "b.png").write_bytes((folder / "b.png").read_bytes())
    os.symlink(folder, folder / "trip" / "round")
    found = collect([folder])
    assert names(found) == ["a", "b", "ü", "trip/b", "trip/day 1/b"]
    assert "2 skipped" in capsys.readouterr().err  # notes.txt, and the link
    assert found[3].read().shape == (50, 70, 3)
    assert collect(found) == found


def test_outputs_among_the_inputs_are_no_inputs(folder):
    out = folder / "maps"
    out.mkdir()
    (out / "a.png").write_bytes((folder / "b.png").read_bytes())
    assert "maps/a" in names(collect([folder]))
    assert names(collect([folder], out_dir=out)) == ["a", "b", "ü"]
    with pytest.raises(ValueError, match="is the folder of the images"):
        collect(folder, out_dir=out / "..")


def test_outputs_of_earlier_predictions_are_no_inputs(folder, inferencer, capsys):
    for name, kinds in (("maps", ["probability"]), ("trip/seen", ["mask", "overlay"])):
        list(inferencer.stream(folder / "b.png", out_dir=folder / name, save=kinds, resume=True))
    capsys.readouterr()
    assert names(collect(folder, out_dir=folder / "trip/seen")) == ["a", "b", "ü"]
    told = capsys.readouterr().err
    assert f"hold outputs of predictions: {folder / 'maps'}; name" in told
    assert names(collect(folder / "maps")) == ["b"]  # as it is named
    with pytest.raises(ValueError, match=r"holds no images .* it has outputs of predictions: "):
        collect(folder / "trip")


def test_pil_images_of_16_bits_are_what_their_file_is(tmp_path):
    greys = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1360
    for mode, values in (("I;16", greys), ("I;16", greys // 400), ("I", greys.astype(np.int32))):
        picture = Image.fromarray(values)
        assert picture.mode == mode
        picture.save(tmp_path / "grey.png")
        for given in (picture, Image.open(tmp_path / "grey.png")):
            (file,), (item,) = collect(tmp_path / "grey.png"), collect(given)
            np.testing.assert_array_equal(item.read(), file.read())
            assert np.unique(item.read()).size > 2
    for values in (greys.astype(np.float32), greys.astype(np.int32) * 2):
        with pytest.raises(ValueError, match=r"mode '[FI]' holds no values of 8 or 16 bits"):
            collect(Image.fromarray(values))


def test_files_arrays_and_cameras_have_names(folder):
    array = np.zeros((4, 5, 3), np.uint8)
    found = collect([folder / "b.png", array, "camera:1"])
    assert names(found) == ["b", "0001", "camera1"]
    assert str(found[2]) == "camera:1" and found[2].path is None
    with pytest.raises(ValueError, match=r"camera:1 is a video"):
        found[2].read()


def test_no_camera(capfd):
    with pytest.raises(ValueError, match=r"camera:97 cannot be opened .* may you use it"):
        check_readable(collect("camera:97"))
    assert capfd.readouterr().err == ""


def test_a_video_without_frames(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match="cannot be opened as a video; convert it with ffmpeg"):
        check_readable([Item(Video(tmp_path / "clip.mp4"), "clip")])


def test_a_video_that_opens_and_holds_nothing(tmp_path, monkeypatch):
    nothing = SimpleNamespace(read=lambda: (False, None), release=lambda: None)
    monkeypatch.setattr(Video, "open", lambda self: nothing)
    with pytest.raises(UnreadableFile, match=r"clip\.mp4 has no frames"):
        next(Video(tmp_path / "clip.mp4").frames())


def test_a_camera_is_opened_once(monkeypatch):
    # On Linux it cannot be, while its frames are read.
    monkeypatch.setattr(Video, "open", lambda self: pytest.fail("opened"))
    assert Video(0).rate() == 25 and Video(0).length() is None


def test_pillows_limit_and_that_of_memory(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match=r"more than 1,400 pixels; .* --tile"):
        check_readable(collect(folder / "b.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    check_readable(collect(folder / "b.png"))
    monkeypatch.setattr("codmoe.inference.inputs.available_memory", lambda: 32_000)
    with pytest.raises(ValueError, match=r"b\.png has 3,500 pixels, .* allow 1,000 here"):
        check_readable(collect(folder / "b.png"))
    monkeypatch.setattr("codmoe.inference.inputs.available_memory", lambda: None)
    with pytest.raises(ValueError, match="OpenCV"):
        check_memory(folder / "b.png", 2**30 + 1)


def test_why_each_file_cannot_be_read_is_told_before_weights(tmp_path):
    (tmp_path / "a.jpg").write_bytes(bytes(4) + b"ftypheic")
    (tmp_path / "b.png").write_bytes(b"")
    pages = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "c.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "d.webp", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "e.tif")
    with pytest.raises(ValueError, match="4 of 5 images cannot be read") as caught:
        check_readable(collect(tmp_path))
    for name, why in (
        ("a.jpg", "is unreadable: it is a photo in HEIC"),
        ("b.png", "is unreadable: the file is empty"),
        ("c.tif", "holds several pictures"),
        ("d.webp", "holds several pictures"),
    ):
        assert f"{tmp_path / name} {why}" in str(caught.value)

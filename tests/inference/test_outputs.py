import csv
import json
import multiprocessing
import os
import shutil
import signal

import cv2
import numpy as np
import pytest
from miniature import call, on_two_ranks
from PIL import Image

from codmoe.inference import outputs as outputs_module
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.inputs import Video, collect
from codmoe.inference.outputs import PICTURES, RECORD, Outputs

FRAMES, RATE = 11, 12.5


@pytest.fixture
def many(tmp_path):
    """Nine images in two folders."""
    rng = np.random.default_rng(1)
    for i in range(9):
        path = tmp_path / "many" / ("sub" if i % 2 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    return tmp_path / "many"


@pytest.fixture
def clip(tmp_path):
    """A video of a bright square that moves."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    for i in range(FRAMES):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[10:20, 4 * i : 4 * i + 12] = 220
        writer.write(frame)
    writer.release()
    return path


def files(folder):
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(p) for p in found if RECORD not in p.parts)


def predict(monkeypatch, weights, *arguments):
    return call(monkeypatch, "predict", *arguments, "--checkpoint", weights, "--device", "cpu")


def test_a_table_that_cannot_be_written_is_told_first(inferencer, folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written: Not a directory: '.*file/a\.csv'"):
        inferencer(folder, out_dir=tmp_path / "out", table=tmp_path / "file" / "a.csv")
    assert not (tmp_path / "out").exists()


def test_every_kind_in_a_folder_of_its_own(inferencer, folder, tmp_path):
    (found,) = inferencer(folder / "a.jpg", out_dir=tmp_path / "out", save=list(PICTURES))
    assert len(files(tmp_path / "out")) == 6
    pictures = {k: Image.open(tmp_path / "out" / k / f"a{s}") for k, (s, _) in PICTURES.items()}
    assert pictures["cutout"].mode == "RGBA" and pictures["overlay"].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(pictures["mask"]), found.mask * 255)
    np.testing.assert_array_equal(np.asarray(pictures["cutout"]), found.cutout())
    side = pictures.pop("side-by-side")
    assert {p.size for p in pictures.values()} == {(33, 40)} and side.width > 3 * 297
    assert set(found.expert_maps) == {"sinet", "pranet"}
    inferencer(folder / "a.jpg", out_dir=tmp_path / "cut", save="cutout")
    assert files(tmp_path / "cut") == ["a.png"]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_a_table_without_pictures(inferencer, folder, tmp_path, suffix):
    path = tmp_path / f"all{suffix}"
    first, *_ = inferencer(folder, table=path)
    text = path.read_text()
    if suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert rows[0]["weight_sinet"] and rows[0]["frame"] == ""
        box = tuple(int(rows[0][k]) for k in ("left", "top", "right", "bottom"))
    else:
        rows = json.loads(text) if suffix == ".json" else [*map(json.loads, text.splitlines())]
        assert rows[0]["weights"] == {k: round(v, 4) for k, v in first.weights.items()}
        box = tuple(rows[0]["box"])
    assert [os.path.basename(row["image"]) for row in rows] == ["a.jpg", "b.png", "ü.png"]
    assert float(rows[0]["object_share"]) == pytest.approx(first.share, abs=1e-5)
    assert float(rows[0]["confidence"]) == pytest.approx(first.confidence, abs=1e-4)
    assert box == first.box
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "bilder"]


def test_nothing_is_overwritten_unasked(inferencer, folder, tmp_path):
    out, table = tmp_path / "out", tmp_path / "t.csv"
    inferencer(folder, out_dir=out)
    before = (out / "b.png").read_bytes()
    with pytest.raises(ValueError, match=r"there already: .*a\.png, .* and 1 more; --overwrite"):
        inferencer(folder, out_dir=out, save="mask")
    assert (out / "b.png").read_bytes() == before
    inferencer(folder, out_dir=out, save="mask", overwrite=True)
    assert (out / "b.png").read_bytes() != before and len(files(out)) == 3
    table.write_text("mine")
    with pytest.raises(ValueError, match=r"there already: .*t\.csv"):
        inferencer(folder, table=table)
    assert table.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(save="overlays"), "no output 'overlays'; did you mean 'overlay'"),
        (dict(table="all.xlsx"), "name it .csv, .json, .jsonl"),
        (dict(overwrite=True, shard=(0, 2)), "with several processes"),
    ],
)
def test_faulty_options(inferencer, folder, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        inferencer(folder, out_dir=tmp_path / "out", **options)


def test_the_command_goes_on_and_knows_other_settings(weights, many, tmp_path, monkeypatch, capsys):
    out, table = tmp_path / "out", tmp_path / "all.csv"
    options = ("--out", out, "--table", table)
    damaged = many / "sub" / "x.png"
    damaged.write_bytes(b"no image")
    assert "x.png" in predict(monkeypatch, weights, many, *options)
    assert not out.exists()
    assert predict(monkeypatch, weights, many, *options, "--skip-unreadable") == 1
    assert len(files(out)) == 9 and "unreadable" in table.read_text()
    told = capsys.readouterr()
    assert "9 predicted" in told.out and "1 cannot be read" in told.err
    damaged.write_bytes((many / "0.png").read_bytes())
    (out / "0.png").unlink()
    assert predict(monkeypatch, weights, many, *options) is None
    said = capsys.readouterr().out
    assert "8 were done before" in said and "2 predicted" in said and "1.png" not in said
    assert len(files(out)) == 10 and len(table.read_text().splitlines()) == 11
    fault = predict(monkeypatch, weights, many, *options, "--flip")
    assert "views was None, now {'flip': True" in fault and "--overwrite" in fault
    assert predict(monkeypatch, weights, many, *options, "--flip", "--overwrite") is None
    assert "10 predicted" in capsys.readouterr().out


def _killed_after(count, weights, many, out):
    """Predicts until so many are done, and is killed while the next is written."""
    done = outputs_module.Outputs.add

    def add(self, item, rows):
        done(self, item, rows)
        if self.made == count:
            (self.record / "0-of-2.jsonl").open("a").write('{"name": "cut o')
            os.kill(os.getpid(), signal.SIGKILL)

    outputs_module.Outputs.add = add
    inferencer = Inferencer(checkpoint=weights, device="cpu", batch_size=2)
    list(inferencer.stream(many, out_dir=out, table=out / "all.csv", shard=(0, 2)))


def test_two_processes_finish_what_a_killed_one_began(weights, many, tmp_path, monkeypatch):
    out = tmp_path / "out"
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_killed_after, args=(2, weights, many, out))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and not (out / "all.csv").exists()
    kept = {path: (out / path).stat().st_mtime_ns for path in files(out)}
    assert 2 <= len(kept) < 5
    options = (many, "--out", out, "--table", out / "all.csv", "--batch-size", 2)
    on_two_ranks("predict", *options, "--checkpoint", weights, "--device", "cpu", cwd=tmp_path)
    assert files(out) == sorted(
        [
            "all.csv",
            *(f"{i}.png" for i in range(0, 9, 2)),
            *(f"sub/{i}.png" for i in range(1, 9, 2)),
        ]
    )
    journal = (out / RECORD / "0-of-2.jsonl").read_text().splitlines()
    done_before = [json.loads(line)["name"] for line in journal[:2]]
    assert all(
        (out / f"{name}.png").stat().st_mtime_ns == kept[f"{name}.png"] for name in done_before
    )
    rows = list(csv.DictReader((out / "all.csv").open()))
    alone = tmp_path / "alone.csv"
    assert predict(monkeypatch, weights, many, "--table", alone) is None
    for row, other in zip(rows, csv.DictReader(alone.open()), strict=True):
        assert row["image"] == other["image"]
        assert float(row["object_share"]) == pytest.approx(float(other["object_share"]), abs=0.02)


def test_parts_that_slurm_runs_one_after_the_other(weights, many, tmp_path, monkeypatch, capsys):
    out, table = tmp_path / "out", tmp_path / "all.jsonl"
    options = (many, "--out", out, "--table", table, "--launcher", "slurm")
    fault = predict(monkeypatch, weights, *options)
    assert "--launcher slurm: SLURM_PROCID is not set; start it by srun" in fault
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    for rank, count in ((1, 4), (0, 9)):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        assert predict(monkeypatch, weights, *options) is None
        assert len(files(out)) == count and table.exists() == (rank == 0)
    said = capsys.readouterr().out
    assert "part 2 of 2: 4 predicted" in said and "follows when all parts are done" in said
    assert len(table.read_text().splitlines()) == 9


def test_a_video_becomes_a_video(weights, inferencer, clip, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ("--out", out, "--table", out / "all.json", "--save", "mask", "overlay")
    image = tmp_path / "still.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    assert predict(monkeypatch, weights, clip, image, *options, "--batch-size", 4) is None
    assert "without their sound" in capsys.readouterr().err
    assert files(out) == [
        "all.json",
        "mask/clip.mkv",
        "mask/still.png",
        "overlay/clip.mp4",
        "overlay/still.jpg",
    ]
    frames = [frame for frame, _ in Video(clip).frames()]
    masks = [frame[..., 0] for frame, _ in Video(out / "mask" / "clip.mkv").frames()]
    rows = json.loads((out / "all.json").read_text())
    assert len(frames) == len(masks) == FRAMES and len(rows) == FRAMES + 1
    assert [row["frame"] for row in rows] == [*range(FRAMES), None]
    assert Video(out / "overlay" / "clip.mp4").rate() == pytest.approx(RATE)
    assert Video(out / "overlay" / "clip.mp4").length() == FRAMES
    for frame, mask, row in zip(frames, masks, rows, strict=False):
        assert set(np.unique(mask)) <= {0, 255}  # without loss
        assert (mask > 0).mean() == pytest.approx(row["object_share"], abs=1e-4)
        (found,) = inferencer(frame)
        assert (found.mask * 255 != mask).mean() < 0.02
    with pytest.raises(ValueError, match="no transparency"):
        inferencer(clip, out_dir=tmp_path / "cut", save="cutout")


def test_a_video_of_an_odd_name_and_rate(inferencer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rate = 239.4287  # of a telephone in slow motion
    writer = cv2.VideoWriter("clip.mkv", cv2.VideoWriter.fourcc(*"FFV1"), rate, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    os.rename("clip.mkv", "at 10:30.mkv")
    list(inferencer.stream("at 10:30.mkv", out_dir="out:1", save="overlay"))
    (made,) = (tmp_path / "out:1").iterdir()
    assert made.name == "at 10:30.mp4" and Video(made).length() == 1
    assert Video(made).rate() == pytest.approx(rate, rel=1e-3)


def test_a_damaged_video_is_left_out_where_that_is_asked_for(inferencer, folder, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"film")
    table = tmp_path / "t.jsonl"
    inputs = [tmp_path / "film.mp4", folder / "a.jpg"]
    assert len(inferencer(inputs, table=table, skip_unreadable=True)) == 1
    first, second = map(json.loads, table.read_text().splitlines())
    assert "cannot be opened as a video" in first["error"] and second["box"]


def test_what_was_made_of_another_folder_is_not_taken_for_done(inferencer, folder, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other" / "a.jpg"
    inferencer(folder / "a.jpg", out_dir=out, resume=True)
    other.parent.mkdir()
    Image.new("RGB", (9, 7)).save(other)
    with pytest.raises(ValueError, match=r"has 'a' of another file than .*other/a\.jpg"):
        inferencer(other, out_dir=out, resume=True)
    copy = shutil.copytree(folder, tmp_path / "job 2")
    assert inferencer(copy / "a.jpg", out_dir=out, resume=True) == []
    (found,) = inferencer(other, out_dir=out, resume=True, overwrite=True)
    assert Image.open(out / "a.png").size == found.probability.shape[::-1] == (9, 7)


def test_a_table_of_another_run_is_not_replaced(inferencer, folder, tmp_path):
    out, table = tmp_path / "out", tmp_path / "t.csv"
    inferencer(folder, out_dir=out, resume=True)
    table.write_text("mine")
    options = dict(out_dir=out, table=table, resume=True)
    with pytest.raises(ValueError, match=r"there already: .*t\.csv, of another run"):
        inferencer(folder, **options)
    table.unlink()
    assert inferencer(folder, **options) == [] and len(table.read_text().splitlines()) == 4
    assert inferencer(folder, **options) == []


def test_an_unreadable_image_is_tried_again_for_a_table_alone(inferencer, folder, tmp_path):
    (folder / "b.png").write_bytes(b"no image")
    options = dict(table=tmp_path / "t.csv", resume=True, skip_unreadable=True)
    assert len(inferencer(folder, **options)) == 2 and "unreadable:" in options["table"].read_text()
    (folder / "b.png").write_bytes((folder / "ü.png").read_bytes())
    assert len(inferencer(folder, **options)) == 1
    assert "unreadable:" not in options["table"].read_text()


def test_a_linked_image_is_not_replaced(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.png").symlink_to(folder / "b.png")
    items = collect(tmp_path / "links")
    with pytest.raises(ValueError, match=r"b\.png is one of the images"):
        Outputs(items, folder=folder, kinds=["mask"], overwrite=True)


def test_a_video_that_was_not_finished_leaves_nothing(inferencer, clip, tmp_path):
    stream = inferencer.stream(clip, out_dir=tmp_path / "out")
    next(stream)
    stream.close()
    assert files(tmp_path / "out") == []


def test_a_camera_keeps_the_time_and_ends_with_what_it_has(inferencer, clip, tmp_path, monkeypatch):
    frames = [frame for frame, _ in Video(clip).frames()]
    monkeypatch.setattr(Video, "rate", lambda self: 10.0)
    monkeypatch.setattr(Video, "length", lambda self: None)
    # A frame at once, one 0.25 s and one 0.5 s later, at ten frames a second.
    monkeypatch.setattr(Video, "frames", lambda self: zip(frames, (0.0, 0.25, 0.5), strict=False))
    found = list(inferencer.stream("camera:0", out_dir=tmp_path / "out", save="overlay"))
    assert [p.frame for p in found] == [0, 1, 2] and found[0].path is None
    monkeypatch.undo()
    assert Video(tmp_path / "out" / "camera0.mp4").length() == 6


def test_two_inputs_of_one_name(many):
    with pytest.raises(ValueError, match="two inputs would both be '0'"):
        inputs = outputs_module.Item
        Outputs([inputs(many / "0.png", "0")] * 2, folder=many / "out", kinds=["mask"])

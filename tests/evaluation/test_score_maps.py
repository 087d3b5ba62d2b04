import json
import shutil

import cv2
import numpy as np
import pytest
from folders import CAMO_TEST, separate_downloads
from miniature import call
from PIL import Image

from codmoe.evaluation.measures import aggregate, batch_measures
from codmoe.evaluation.score_maps import folder_name, read_map, score_folders, score_maps
from codmoe.messages import quietly

SIZES = [(30, 40), (41, 25), (33, 33)]


@pytest.fixture
def folders(tmp_path):
    """Maps of method "ours" and masks of a data set "CAMO", in the layout of published maps."""
    rng = np.random.default_rng(0)
    maps, masks = tmp_path / "ours" / "CAMO", tmp_path / "CAMO" / "GT"
    maps.mkdir(parents=True)
    masks.mkdir(parents=True)
    pairs = []
    for i, size in enumerate(SIZES):
        mask = np.zeros(size, np.uint8)
        mask[5:20, 6:18] = 255
        level = np.clip(mask * 0.7 + rng.integers(0, 90, size), 0, 255).astype(np.uint8)
        Image.fromarray(mask).save(masks / f"img{i}.png")
        Image.fromarray(level).save(maps / f"img{i}.png")
        pairs.append((level / np.float32(255), mask > 0))
    return maps, masks, pairs


def test_a_file_of_one_data_set_is_its_row(folders, tmp_path, capsys):
    maps, masks, pairs = folders
    file = tmp_path / "result.json"
    score_folders([maps], [masks], json_file=file)
    payload = json.loads(file.read_text())
    expected = aggregate(batch_measures(*zip(*pairs, strict=True)))
    keys = "Sm wFm meanEm adpEm maxEm meanFm adpFm maxFm MAE IoU Dice mIoU mDice maxIoU n".split()
    assert {key: payload[key] for key in keys} == pytest.approx({k: expected[k] for k in keys})
    assert list(payload["images"]) == ["img0", "img1", "img2"]
    assert payload["images"]["img1"]["wFm"] > 0 and len(payload["curves"]["Em"]) == 256
    assert (payload["method"], payload["dataset"], payload["resized"]) == ("ours", "CAMO", 0)
    assert set(payload["conventions"]) >= set(keys)
    assert f"{expected['IoU']:.4f}" in capsys.readouterr().out


def test_measures_by_name_and_the_image_that_one_reads(folders, tmp_path, capsys):
    maps, masks, pairs = folders
    images = tmp_path / "Imgs"
    images.mkdir()
    rng = np.random.default_rng(1)
    for i, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(images / f"img{i}.png")
    row = score_folders([maps], [masks], extra=["CCM", "SIMAE"], images=[images])
    expected = aggregate(batch_measures(*zip(*pairs, strict=True), extra="SIMAE"))
    assert row["SIMAE"] == pytest.approx(expected["SIMAE"]) and 0 < row["CCM"] < 1
    assert "SIMAE" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'CCM' reads the image"):
        score_folders([maps], [masks], extra=["CCM"])
    (images / "img1.png").unlink()
    with pytest.raises(ValueError, match="--images: 1 masks have no image: img1"):
        score_folders([maps], [masks], extra=["CCM"], images=[images])


def test_masks_of_training_beside_those_of_the_test(tmp_path, capsys):
    """CAMO's release has them in one folder, GT."""
    camo = separate_downloads(tmp_path) / "CAMO-V.1.0-CVIU2019"
    maps = tmp_path / "maps"
    maps.mkdir()
    for stem in CAMO_TEST:
        shutil.copy(camo / "GT" / f"{stem}.png", maps)
    row = score_maps(maps, camo / "GT")
    assert sorted(row["images"]) == sorted(CAMO_TEST) and row["IoU"] == 1
    assert "masks of " in (said := capsys.readouterr().out) and "Images/Train left out" in said
    (maps / f"{CAMO_TEST[0]}.png").unlink()
    with pytest.raises(ValueError, match=rf"1 of {len(CAMO_TEST)} masks .* have no map"):
        score_maps(maps, camo / "GT")


def test_several_data_sets_are_a_table(folders, tmp_path):
    maps, masks, _ = folders
    payload = score_folders([maps, maps], [masks, masks], datasets=["A", "B"], method="x")
    assert payload["table"]["A"]["x"] == payload["table"]["B"]["x"] and "IoU" not in payload
    with pytest.raises(ValueError, match="share a name"):
        score_folders([maps, maps], [masks, masks])
    with pytest.raises(ValueError, match=r"names 1 folder\(s\) and --gt 2"):
        score_folders([maps], [masks, masks])


def test_a_missing_map_is_an_error_that_names_it(folders):
    maps, masks, _ = folders
    (maps / "img1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 masks in .* have no map in .*: 'img1'; maps are"):
        score_maps(maps, masks)


def test_a_map_of_another_name_is_seen(folders):
    maps, masks, _ = folders
    for path in list(maps.iterdir()):
        path.rename(path.with_name(f"{path.stem}_pred.png"))
    with pytest.raises(ValueError, match="folder holds maps named 'img0_pred', 'img1_pred'"):
        score_maps(maps, masks)


def test_masks_without_camouflage_need_no_map(folders, capsys):
    maps, masks, _ = folders
    for path in [*maps.iterdir(), *masks.iterdir()]:
        path.rename(path.with_name(f"COD10K-CAM-1-{path.name}"))
    empty = masks / "COD10K-NonCAM-5-Background-7.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(empty)
    assert score_maps(maps, masks)["n"] == 3
    assert "1 masks COD10K-NonCAM-* left out" in capsys.readouterr().out
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(maps / empty.name)
    assert score_maps(maps, masks)["n"] == 4


@pytest.mark.parametrize(
    "darken",
    [
        lambda level: level // 200,
        lambda level: level.astype(np.uint16),
        lambda level: level.astype(np.uint16) * 16,
    ],
    ids=["0 and 1", "0 to 255 in 16 bits", "12 bits in 16"],
)
def test_a_map_read_as_nearly_black_is_named(folders, capsys, darken):
    maps, masks, _ = folders
    path = maps / "img1.png"
    Image.fromarray(darken(np.asarray(Image.open(path)))).save(path)
    row = score_maps(maps, masks)
    assert row["images"]["img1"]["IoU"] == 0 and row["images"]["img0"]["IoU"] > 0.5
    assert "1 of 3 maps hold no value above one half" in (said := capsys.readouterr().err)
    assert said.strip().endswith("img1.png")
    Image.fromarray(np.zeros(SIZES[1], np.uint8)).save(path)  # a method may find nothing
    score_maps(maps, masks)
    assert not capsys.readouterr().err.strip()
    Image.fromarray(np.full(SIZES[1], 200, np.uint8)).save(path)
    score_maps(maps, masks)
    assert "1 of 3 maps have one value everywhere" in capsys.readouterr().err


def test_maps_that_are_inverted_are_named(folders, capsys):
    maps, masks, _ = folders
    for path in maps.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    score_maps(maps, masks)
    said = capsys.readouterr().err
    assert "3 of 3 maps are darker on the object than elsewhere, as if inverted: img0.png" in said


def test_masks_without_object_are_named_and_not_all_of_them(folders, capsys):
    maps, masks, _ = folders
    for number, size in enumerate(SIZES):
        Image.fromarray(np.zeros(size, np.uint8)).save(masks / f"img{number}.png")
        if number == 0:
            score_maps(maps, masks)
            assert "1 of 3 masks: no pixel is object (img0.png)" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"3 of 3 masks: no pixel is object \(img0\.png, img1"):
        score_maps(maps, masks)


def test_what_lies_beside_maps(folders):
    maps, masks, _ = folders
    for folder in (maps, masks):
        (folder / "._img0.png").write_bytes(b"fork")
        (folder / "Thumbs.db").write_bytes(b"thumbs")
        (folder / "@eaDir").mkdir()
    assert score_maps(maps, masks)["n"] == 3
    (maps / "img1.png").unlink()
    (maps / "img1.png").mkdir()
    with pytest.raises(ValueError, match=r"img1\.png is a folder called like an image"):
        score_maps(maps, masks)


def test_a_map_without_mask_is_reported(folders, capsys):
    maps, masks, _ = folders
    (masks / "img1.png").unlink()
    assert score_maps(maps, masks)["n"] == 2
    assert "1 of 3 maps have no mask" in capsys.readouterr().err
    # Once by the command, which looks at all folders first, and with --quiet as well.
    with quietly():
        score_folders([str(maps)], [str(masks)])
    assert capsys.readouterr().err.count("warning: ") == 1


def test_masks_and_maps_in_sub_folders_are_told(folders, capsys):
    """A data set of which the most lies in sub-folders was scored by the rest, without a word."""
    maps, masks, _ = folders
    (masks / "more").mkdir()
    (masks / "img1.png").rename(masks / "more" / "img1.png")
    assert score_maps(maps, masks)["n"] == 2
    assert f"1 image files below {masks} are not read" in capsys.readouterr().err
    (maps / "predicted").mkdir()
    (maps / "img0.png").rename(maps / "predicted" / "img0.png")
    with pytest.raises(ValueError, match=r"'img0'.*; 1 image files below .*\(predicted\)"):
        score_maps(maps, masks)


def test_a_result_that_cannot_be_written_is_told_first(folders, tmp_path, monkeypatch):
    maps, masks, _ = folders
    monkeypatch.setattr("codmoe.evaluation.score_maps.score_maps", None)  # nothing is scored
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written: Not a directory: '.*file/a\.json'"):
        score_folders([str(maps)], [str(masks)], json_file=str(tmp_path / "file/a.json"))


def test_maps_of_another_size(folders, capsys):
    maps, masks, pairs = folders
    small = cv2.resize((pairs[0][0] * 255).astype(np.uint8), (20, 15))
    Image.fromarray(small).save(maps / "img0.png")
    with pytest.raises(ValueError, match=r"img0.png is 20x15 and its mask 40x30; --resize"):
        score_maps(maps, masks)
    row = score_maps(maps, masks, resize=True)
    assert row["resized"] == 1 and row["n"] == 3 and row["images"]["img0"]["IoU"] > 0.5
    said = capsys.readouterr().err
    assert "1 of 3 maps were brought to their masks' size: img0.png" in said
    assert "turned" not in said
    cv2.imwrite(str(maps / "img0.png"), np.rot90(pairs[0][0] * 255).astype(np.uint8))
    score_maps(maps, masks, resize=True)
    said = capsys.readouterr().err
    assert "warning: " in said and "1 of 3 maps have the sides of their masks swapped" in said
    cv2.imwrite(str(maps / "img0.png"), np.zeros((31, 39), np.uint8))  # as of NC4K's masks
    assert score_maps(maps, masks)["resized"] == 1


def test_backends_and_workers_agree(folders):
    maps, masks, _ = folders
    ours, theirs = (
        score_maps(maps, masks, backend=b, workers=w)
        for b, w in (("torch", 3), ("pysodmetrics", 1))
    )
    for stem, scalars in ours["images"].items():
        assert scalars == pytest.approx(theirs["images"][stem], abs=1e-6)


def test_what_a_map_may_be(tmp_path):
    level = np.arange(12, dtype=np.uint8).reshape(3, 4)
    files = {
        "grey.png": level,
        "rgb.png": np.dstack([level] * 3),
        "rgba.png": np.dstack([level] * 3 + [level * 0 + 255]),
        "deep.png": level.astype(np.uint16) * 257,
    }
    for name, pixels in files.items():
        cv2.imwrite(str(tmp_path / name), pixels)
        np.testing.assert_allclose(read_map(tmp_path / name), level / 255, atol=1e-7)
    for name in ("float.npy", "float.tif"):
        write_map(tmp_path / name, (level / 255).astype(np.float32))
        np.testing.assert_allclose(read_map(tmp_path / name), level / 255, atol=1e-7)
    write_map(tmp_path / "grey.npy", level[None])
    np.testing.assert_allclose(read_map(tmp_path / "grey.npy"), level / 255, atol=1e-7)


def write_map(path, pixels):
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        cv2.imwrite(str(path), pixels)


LEVEL = np.arange(12, dtype=np.uint8).reshape(3, 4)
NAN = np.where(LEVEL == 5, np.nan, LEVEL / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "pixels", "words"),
    [
        ("colour.png", np.dstack([LEVEL, LEVEL, LEVEL + 1]), "is in colour"),
        ("alpha.png", np.dstack([LEVEL] * 4), "has an alpha channel that varies"),
        ("nan.tif", NAN, "holds float32 values from nan"),
        ("nan.npy", NAN, "holds float32 values from nan"),
        ("bytes.tif", LEVEL.astype(np.float32), "holds float32 values from 0 to 11"),
        ("logits.npy", LEVEL - 5.0, "holds float64 values from -5 to 6"),
        ("integers.npy", LEVEL.astype(np.int64), "holds int64 values from 0 to 11"),
        ("stack.npy", np.zeros((2, 3, 5)), r"has the shape \(2, 3, 5\)"),
    ],
)
def test_what_a_map_may_not_be(tmp_path, name, pixels, words):
    write_map(tmp_path / name, pixels)
    with pytest.raises(ValueError, match=f"{name} {words}"):
        read_map(tmp_path / name)


def test_maps_that_are_broken(tmp_path):
    for name in ("broken.png", "broken.npy"):
        (tmp_path / name).write_bytes(b"\x89PNG")
        with pytest.raises(ValueError, match=f"{name} is unreadable"):
            read_map(tmp_path / name)


def test_names_come_from_telling_folders():
    assert folder_name("x/TestDataset/CAMO/GT") == "CAMO"
    assert folder_name("maps/ours/CAMO", but=["CAMO"]) == "ours"
    assert folder_name("/x/SINet/preds") == "SINet"
    assert folder_name("published/SINet/COD10K", but=["COD10K-v3"]) == "SINet"
    assert folder_name("published/SINet/camo", but=["CAMO"]) == "SINet"


def test_maps_of_two_methods_are_not_one(folders, tmp_path):
    maps, masks, _ = folders
    other = tmp_path / "theirs" / "CAMO"
    shutil.copytree(maps, other)
    with pytest.raises(ValueError, match="folders of ours, theirs; score one method at a time"):
        score_folders([maps, other], [masks, masks], datasets=["CAMO", "B"])
    table = score_folders([maps, other], [masks, masks], datasets=["A", "B"], method="x")["table"]
    assert list(table["A"]) == ["x"]


def test_the_command(folders, tmp_path, monkeypatch):
    maps, masks, _ = folders
    file = tmp_path / "r.json"
    arguments = ("--pred", maps, "--gt", masks, "--json", file)
    assert call(monkeypatch, "eval_maps", *arguments) is None
    first = file.read_bytes()
    assert call(monkeypatch, "eval_maps", *arguments, "--method", "again") is None
    (kept,) = tmp_path.glob("r.2*.json")
    assert kept.read_bytes() == first and json.loads(file.read_text())["method"] == "again"
    code = call(monkeypatch, "eval_maps", "--pred", tmp_path / "absent", "--gt", masks)
    assert code.startswith("error: --pred: there is no folder") and "\n" not in code
    code = call(monkeypatch, "eval_maps", *arguments, "--device", "abacus")
    assert code.startswith("error: device 'abacus' is not to be had here") and "\n" not in code
    (tmp_path / "empty").mkdir()
    code = call(monkeypatch, "eval_maps", "--pred", maps, "--gt", tmp_path / "empty")
    assert code.startswith("error: --gt: no image files in")

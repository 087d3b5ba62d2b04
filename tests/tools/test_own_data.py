"""Images and masks of one's own, as people have them, through the tools with shipped configs."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from folders import LAYOUTS, picture
from miniature import call
from PIL import Image

from codmoe.datasets.recognition import read
from codmoe.engine.checkpoints import meta_of
from codmoe.engine.config import load_config
from codmoe.engine.own_data import data_arguments, set_data
from codmoe.engine.stages import check_data, plan, train_command
from codmoe.registry import DATASETS
from codmoe.shipped import list_configs

QUICK = (
    "train_dataloader.num_workers=0 train_dataloader.persistent_workers=False "
    "val_dataloader.num_workers=0 val_dataloader.persistent_workers=False "
    "test_dataloader.num_workers=0 train_cfg.max_epochs=1 train_cfg.val_interval=1"
).split()

DROPPED = ("pranet", "ujsc", "zoomnet")


def odd_folder(root, count=20, first=0):
    """Pairs named and stored in many ways, one of them tiny, with what systems leave beside."""
    images, masks = root / "My Photos", root / "truth (final)"
    for folder in (images, masks):
        folder.mkdir(parents=True)
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / "desktop.ini").write_text("x")
        (folder / "._IMG 1 (Copy).JPG").write_bytes(b"x")
        (folder / "@eaDir").mkdir()
    for number in range(first, first + count):
        image, mask = picture(number, [(48, 60), (7, 9), (64, 40)][number % 3])
        stem = [f"IMG {number} (Copy)", f"Bild_{number}_\u00e4", f"{number}.final"][number % 3]
        cv2.imwrite(str(images / f"{stem}{['.JPG', '.png', '.TIF'][number % 3]}"), image)
        stem = stem.replace("\u00e4", "a\u0308")
        kind = number % 4
        if kind == 0:
            palette = Image.fromarray(mask // 255, "P")
            palette.putpalette([0, 0, 0, 128, 0, 0])
            palette.save(masks / f"{stem}.PNG")
        else:
            values = [mask // 255, mask, (mask > 0) * np.uint16(300)][kind - 1]
            cv2.imwrite(str(masks / f"{stem}.png"), values)
    return images, masks


@pytest.mark.parametrize("config", list_configs())
def test_any_shipped_config_takes_them(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, masks = odd_folder(tmp_path)
    cfg = load_config(config)
    set_data(cfg, images=str(images), masks=str(masks))
    used = {}
    for part in ("train", "val", "test"):
        (data,) = cfg[f"{part}_dataloader"].dataset.datasets.values()
        kinds = [transform["type"] for transform in data.pipeline]
        assert kinds[0] == "LoadCODPair" and {"Resize", "RandomWarp"} & set(kinds)
        assert kinds[-1] == "PackCODInputs" and data.image_dir == images.name
        used[part] = data.split.use
    assert used["val"] == ("val",) and used["test"] == ("test",)
    assert set(used["train"]) <= {"experts", "router"}
    command = (cfg.get("init_from") or {}).get("command") or ""
    assert "configs/" not in command or command.endswith(f"--images '{images}' --masks '{masks}'")


def test_a_root_reaches_data_sets_in_a_list(tmp_path):
    """As mmengine's ConcatDataset takes them."""
    root = LAYOUTS["separate"](tmp_path) / "COD10K-v3"
    cfg = load_config("experts/joint")
    sets = [cfg.train_dataloader.dataset, dict(cfg.train_dataloader.dataset, name="again")]
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=sets)
    set_data(cfg, str(root))
    found = cfg.train_dataloader.dataset
    assert found.type == "ConcatDataset"
    assert [each.data_root for each in found.datasets] == [str(root)] * 2


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_benchmarks_take_the_place_of_other_data(tmp_path, layout):
    """Of folders that several share each has its own images, and camouflaged ones alone."""
    root = LAYOUTS[layout](tmp_path)
    cfg = load_config("small/finetune")
    set_data(cfg, str(root))
    sets = dict(cfg.train_dataloader.dataset.datasets)
    assert sorted(sets) == ["CAMO", "COD10K"]
    stems = {}
    for name, each in sets.items():
        data = DATASETS.build({**each, "split": None})
        stems[name] = [data.get_data_info(i)["stem"] for i in range(len(data))]
    assert all(stem.startswith("COD10K-CAM-") for stem in stems["COD10K"])
    assert all(stem.startswith("camourflage_") for stem in stems["CAMO"])
    assert all(stems.values())


def test_doctor_training_and_test_in_miniature(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, masks = odd_folder(tmp_path)
    data = ["--images", images, "--masks", masks]
    assert call(monkeypatch, "data/doctor", *data, "--workers", 1) == 0
    options = ["--cfg-options", *QUICK, *(f"model.experts.{n}=None" for n in DROPPED)]
    assert call(monkeypatch, "train", "quickstart/stage1", *data, *options) is None
    weights = "quickstart/checkpoints_moe/experts_joint_best.pth"
    others, moved, mixed = (tmp_path / name for name in ("others", "moved", "mixed"))
    odd_folder(others, first=100)
    odd_folder(mixed, first=200)
    for folder in (images, masks):
        shutil.copytree(folder, moved / folder.name)
        for path in folder.glob("*.final.*"):
            shutil.copy(path, mixed / folder.name)
    # Of images that it was trained on those held out are tested, of others all.
    for folder, count, seen in (
        *((tmp_path, 3, 0), (moved, 3, 0), (mixed, 26, 4)),
        (others, 20, 0),
    ):
        given = ["--images", folder / images.name, "--masks", folder / masks.name]
        files = ["--json", folder / "r.json", *options]
        assert call(monkeypatch, "test", "quickstart/stage1", weights, *given, *files) is None
        result = json.loads((folder / "r.json").read_text())
        assert result["table"][folder.name]["mixture"]["n"] == count
        assert result["trained_on"] == ({folder.name: seen} if seen else {})
        said = f"{folder.name}: the weights were TRAINED ON {seen} of these {count} images"
        out, err = capsys.readouterr()
        for text in ((folder / "r.md").read_text(), out):
            assert (said in text) == ("TRAINED ON" in text) == bool(seen)
        assert ("trained on these images, in another folder" in err) == (folder == moved)
    assert "others/My Photos, all; the weights were trained on none of them" in err
    # Training checkpoints know them, too, and a stage what those before it saw.
    (last,) = (tmp_path / "work_dirs").rglob("epoch_1.pth")
    assert len(read(meta_of(last)["trained_on"])) == 12
    data = ["--images", moved / images.name, "--masks", moved / masks.name]
    again = [*data, *options, "model.top_k=1"]
    assert call(monkeypatch, "train", "quickstart/stage2", *again) is None
    (router,) = (tmp_path / "quickstart").rglob("router_best.pth")
    assert len(read(meta_of(router)["trained_on"])) == 12 + 3
    told = "images that the router learns from are among those that the experts were trained on"
    assert told not in (said := capsys.readouterr().out) and "validation images are" not in said
    # Names decide the split: a stage on renamed files learns and chooses by what others learnt.
    renamed = tmp_path / "renamed"
    for folder in (images, masks):
        (renamed / folder.name).mkdir(parents=True)
        for path in (path for path in folder.glob("[!.]*.*") if path.suffix not in (".db", ".ini")):
            shutil.copy(path, renamed / folder.name / f"new {path.name}")
    data = ["--images", renamed / images.name, "--masks", renamed / masks.name]
    assert call(monkeypatch, "train", "quickstart/stage2", *data, *options, "model.top_k=1") is None
    said = capsys.readouterr().out
    assert re.search(rf"warning: [123] of 3 {told}", said)
    assert re.search(
        r"warning: [12] of 2 validation images are among those that this run, or", said
    )
    # So does a run that is resumed on others.
    data = ["--images", others / images.name, "--masks", others / masks.name, "--resume"]
    longer = [*options, "train_cfg.max_epochs=2"]
    assert call(monkeypatch, "train", "quickstart/stage1", *data, *longer) is None
    assert "other training images than before: 12 of 12 are new, 12 are " in capsys.readouterr().out
    # Weights of before know their folder alone.
    content = torch.load(weights, weights_only=True)
    content["meta"].pop("trained_on")
    torch.save(content, "old.pth")
    cfg = load_config("quickstart/stage1")
    set_data(cfg, images=str(given[1]), masks=str(given[3]), checkpoint="old.pth")
    assert f"trained on {images} (--held-out if they are the same)" in capsys.readouterr().err
    # Those that ship, and images in another place than they were trained in, on the same part.
    for name, config in (("small", "small/finetune"), (weights, "quickstart/stage1")):
        file = tmp_path / f"{config[:5]}.json"
        more = ["--held-out", "--json", file, "--cfg-options", *QUICK]
        more += [f"model.experts.{n}=None" for n in DROPPED if name != "small"]
        assert call(monkeypatch, "test", config, name, *given, *more) is None
        table = json.loads(file.read_text())["table"]
        assert table["others"]["mixture"]["n"] == 3
    assert "trained on" not in capsys.readouterr().err
    said = call(monkeypatch, "test", "small/finetune", "small", "--held-out")
    assert said.startswith("error: --held-out is of --images and --masks")


def test_stages_hand_them_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, masks = odd_folder(tmp_path)
    data = dict(images=str(images), masks=str(masks))
    stages = plan([f"quickstart/stage{number}" for number in (1, 2, 3)], tmp_path, [], **data)
    check_data(stages)
    command = train_command(stages[1], 1, data_arguments(**data), resume=False)
    assert command[-4:] == ["--images", str(images), "--masks", str(masks)]


def test_overrides_of_the_data_set_are_kept_or_refused(tmp_path):
    images, masks = odd_folder(tmp_path)
    given = {
        "train_dataloader.dataset.cache": True,
        "train_dataloader.dataset.pipeline.1.flip": 0.25,
    }
    cfg = load_config("small/finetune", given)
    set_data(cfg, images=str(images), masks=str(masks), options=given)
    (data,) = cfg.train_dataloader.dataset.datasets.values()
    assert data.cache is True and data.pipeline[1].flip == 0.25
    (held_out,) = cfg.val_dataloader.dataset.datasets.values()
    assert "cache" not in held_out
    given = {"train_dataloader.dataset.split.seed": 1}
    cfg = load_config("small/finetune", given)
    with pytest.raises(ValueError, match=r"dataset\.split\.seed changes a data set that your own"):
        set_data(cfg, images=str(images), masks=str(masks), options=given)


def test_errors_name_the_commands_of_this_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, masks = odd_folder(tmp_path)
    data = ["--images", images, "--masks", masks]
    code = call(monkeypatch, "train", "router/stage2", *data)
    again = f"--images '{images}' --masks '{masks}'"
    assert code.endswith(f"with: codmoe train configs/experts/joint.py {again}")
    assert call(monkeypatch, "train", "small/stage1", "--images", images) == (
        "error: --masks is not given; give --images and --masks, or --data-root"
    )
    absent = call(monkeypatch, "train", "small/stage1", "--images", images, "--masks", "nowhere")
    assert absent.startswith("error: --masks: there is no folder nowhere")
    (masks / "IMG 0 (Copy).PNG").unlink()
    code = call(monkeypatch, "train", "small/stage1", *data)
    assert "1 of 20 images have no mask: 'IMG 0 (Copy)'" in code
    for number in range(0, 20, 3):
        path = masks / f"IMG {number} (Copy).{'PNG' if number % 4 == 0 else 'png'}"
        cv2.imwrite(str(path), np.full((48, 60), 7, np.uint8))
    code = call(monkeypatch, "train", "small/stage1", *data)
    assert "has the value 7 everywhere; a mask is" in code
    assert f"(codmoe doctor {again} says" in code


def test_one_folder_with_train_and_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for role, count in (("train", 20), ("test", 4)):
        odd_folder(tmp_path / role, count)
        (tmp_path / role / "My Photos").rename(tmp_path / role / "images")
        (tmp_path / role / "truth (final)").rename(tmp_path / role / "masks")
    cfg = load_config("experts/joint_cod")
    set_data(cfg, str(tmp_path))
    train, test = (
        cfg[f"{p}_dataloader"].dataset.datasets[tmp_path.name] for p in ("train", "test")
    )
    assert train.split.use == ("experts",) and sum(train.split.fractions.values()) == 1
    assert "test" not in train.split.fractions and test.split is None
    assert test.data_root == str(tmp_path / "test")

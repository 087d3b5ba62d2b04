"""The small ensemble from photographs to model card, in steps that go on where they stopped.

prepare  lays data and the body's weights where the configs look for them (data/, ignored by git)
train    three stages, a router with a domain held out, the choice on validation: minutes on a GPU
save     beside it: the finished stages, from which train goes on elsewhere
finish   8-bit weights, figures of every data set and the model card: minutes on two CPU cores

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from codmoe import create_model
from codmoe.engine.checkpoints import packed, read_meta, read_weights, save_weights
from codmoe.engine.config import load_config
from codmoe.engine.stages import plan, run_command, run_stages
from codmoe.files import new_folder, replacing, save_json
from codmoe.inference.export.pack import pack
from codmoe.models.backbones.base import create_timm
from projects.small_ensemble import measure
from projects.small_ensemble.card import fill_card

STAGES = ("small/stage1", "small/stage2", "small/stage3")
BODY = "vit_small_patch14_dinov2"
WEIGHTS = Path("codmoe/weights/small_ensemble.safetensors")
# The router of stage 2 without photographs, which then are a domain that it never saw.
HELD_OUT = (
    "train_dataloader.dataset.datasets.Complete=None",
    "train_dataloader.dataset.datasets.People=None",
    "default_hooks.best.name=router_scenes",
    "assembly=None",
)
ATTRIBUTION = Path("data/open/coco/ATTRIBUTION.txt")
PHOTOGRAPHS = ("Photos", "Cutouts", "Textures")
PART = 15 * 2**20
"""Bytes of a part of a file that travels."""
KEPT = ("finished.json", "config.sha256")
"""What a work dir says of its stage."""


def prepare(data: Path, weights: Path) -> None:
    """Copy the open photographs, those with one person masked apart from those whose every object
    is, and prepare the body.
    """
    source, target = data / "open/coco", Path("data/open/coco")
    if not target.is_dir():
        with new_folder(target) as folder:
            for line in (source / "ATTRIBUTION.txt").read_text(encoding="utf-8").splitlines():
                words = [word.strip() for word in line.split(" | ")]
                kind = "people" if words[-1] == "person" else "complete"
                for path in (source / f"images/{words[0]}.jpg", source / f"masks/{words[0]}.png"):
                    if not path.is_file():
                        continue  # a line of the head
                    copy = folder / kind / path.parent.name / path.name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
            shutil.copyfile(source / "ATTRIBUTION.txt", folder / "ATTRIBUTION.txt")
    out = prepare_body(weights)
    for path in (target, out):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        print(f"{path}: {sum(p.stat().st_size for p in files) / 2**20:.1f} MiB")


def prepare_body(weights: Path) -> Path:
    """Write the body's weights as 8-bit numbers, which travel in a quarter of the bytes."""
    out = Path(f"data/weights/{BODY}.int8.safetensors")
    if not out.is_file():
        given = weights / f"{BODY}.fp16.safetensors"
        body = create_timm(
            BODY, pretrained=False, checkpoint=str(given), num_classes=0, img_size=336
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_bytes(packed(body.state_dict(), {}, eight_bit=True))
    return out


def train(work_dir: Path, out: Path, configs: Sequence[str] = STAGES) -> None:
    """Train what is not trained yet, choose on validation, and write what travels back.

    Args:
        work_dir: Logs and checkpoints, which a later call goes on from.
        out: What travels: also the stages of ``save``, which are taken for trained.
        configs: Stage 1, 2 and 3.
    """
    restore(work_dir, out, configs)
    run_stages(configs, work_dir=str(work_dir))
    cfg = load_config(configs[2])
    checkpoints = Path(cfg.checkpoint_dir)
    held, best = checkpoints / "router_scenes_best.pth", checkpoints / "ensemble_best.pth"
    if not held.is_file() or held.stat().st_mtime < _time(checkpoints / "router_best.pth"):
        command = [sys.executable, "tools/train.py", configs[1], "--work-dir", f"{work_dir}/held"]
        run_command([*command, "--cfg-options", *HELD_OUT])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    val = measure.data_set("val", config=configs[2])
    records = [
        measure.collect(create_model(checkpoint=c, device=device), val) for c in (held, best)
    ]
    away = [record for record in records[0] if record["dataset"] in PHOTOGRAPHS]
    choice = measure.choose(away, records[1])
    measure.settle(best, choice, work_dir / "settled.pth")
    meta = {k: v for k, v in read_meta(work_dir / "settled.pth").items() if k != "run_id"}
    content = packed(read_weights(work_dir / "settled.pth"), meta)
    in_parts(content, out, "settled")
    save_json(out / "training.json", dict(choice=choice))
    shutil.copyfile(work_dir / "table.md", out / "table.md")
    print(f"{out}: {len(content) / 2**20:.1f} MiB of weights, training.json and table.md")


def save(work_dir: Path, out: Path, configs: Sequence[str] = STAGES) -> None:
    """Write each stage that finished as parts, from which ``train`` goes on elsewhere. The machine
    may be lost: run it beside the training whenever something can be fetched.
    """
    for stage in plan(configs, work_dir, []):
        folder = out / stage.work_dir.name
        if folder.is_dir() or not stage.is_finished():
            continue
        with new_folder(folder) as part:
            in_parts(packed(read_weights(stage.weights), read_meta(stage.weights)), part, "weights")
            for name in KEPT:
                shutil.copyfile(stage.work_dir / name, part / name)
        print(f"{folder}: {stage.name}")


def restore(work_dir: Path, out: Path, configs: Sequence[str]) -> None:
    """Lay the stages of ``save`` where ``run_stages`` takes them for finished."""
    for stage in plan(configs, work_dir, []):
        folder = out / stage.work_dir.name
        if folder.is_dir() and not stage.work_dir.is_dir():
            whole = joined(folder, "weights")
            stage.weights.parent.mkdir(parents=True, exist_ok=True)
            meta = read_meta(whole)
            save_weights(stage.weights, create_model(checkpoint=whole), meta, meta["run_id"])
            whole.unlink()
            stage.work_dir.mkdir(parents=True)
            for name in KEPT:
                shutil.copyfile(folder / name, stage.work_dir / name)


def in_parts(content: bytes, out: Path, name: str) -> None:
    """Write a file's content as parts of at most ``PART`` bytes; those of an earlier one go."""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob(f"{name}.*.part"):
        path.unlink()
    for number, start in enumerate(range(0, len(content), PART)):
        (out / f"{name}.{number}.part").write_bytes(content[start : start + PART])


def joined(folder: Path, name: str) -> Path:
    """The file of :func:`in_parts`, ``<name>.safetensors`` beside its parts."""
    whole = folder / f"{name}.safetensors"
    files = sorted(folder.glob(f"{name}.*.part"), key=lambda p: int(p.name.split(".")[1]))
    if not files:
        raise FileNotFoundError(f"{folder} holds no {name}.*.part; run the step train")
    with replacing(whole, keep=False) as temporary:
        temporary.write_bytes(b"".join(path.read_bytes() for path in files))
    return whole


def _time(path: Path) -> float:
    return path.stat().st_mtime


def finish(
    parts: Path, data: Path | None, pictures: Sequence[Path], weights: Path, config: str = STAGES[2]
) -> dict[str, Any]:
    """Pack, measure the earlier weights and the new ones, fill the card.

    Args:
        parts: Folder of what ``train`` left.
        data: Folder of the research-only sets; None leaves them out.
        pictures: What the rounding to 8 bits is measured on.
        weights: File to write; ``MODEL_CARD.md`` lies beside it.
        config: Stage 3, whose test images are measured.
    """
    whole = joined(parts, "settled")
    before = parts / "before.safetensors"
    if not before.is_file() and weights.is_file():
        shutil.copyfile(weights, before)
    rounding = pack(whole, weights, eight_bit=True, pictures=pictures)
    result: dict[str, Any] = dict(json.loads((parts / "training.json").read_text()))
    result["rounding"] = rounding
    sets = [(name, data) for name in measure.RESEARCH_SETS if data is not None]
    for key, file in (("before", before), ("after", weights)):
        if not file.is_file():
            continue
        model = create_model(checkpoint=file, evaluate_all_experts=True)
        size = _size(model)
        result[key] = dict(
            bytes=file.stat().st_size,
            parameters=sum(p.numel() for p in model.parameters()),
            size=size,
            ms=measure.milliseconds(create_model(checkpoint=file), size),
            sets={},
        )
        for name, root in [("test", None), *sets]:
            done = parts / f"{key}_{name}.json"
            if not done.is_file():
                dataset = measure.data_set(name, root, config=config, size=size)
                save_json(done, measure.measure(model, dataset))
            result[key]["sets"] |= json.loads(done.read_text())
    save_json(parts / "measured.json", result)
    fill_card(weights.parent / "MODEL_CARD.md", parts / "measured.json")
    if ATTRIBUTION.is_file():  # its licences ask for it beside what was made of the photographs
        shutil.copyfile(ATTRIBUTION, weights.parent / ATTRIBUTION.name)
    return result


def _size(model: Any) -> int:
    from codmoe.inference.inferencer import size_of

    return size_of(model.cfg)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("prepare", "train", "save", "finish"))
    parser.add_argument("--data", type=Path, help="folder of open/, camo/, duts/, polyp/")
    parser.add_argument("--weights", type=Path, help="prepare: folder of the body's fp16 weights")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/small"))
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/small/out"), help="what travels"
    )
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="finish: the packed file")
    parser.add_argument("--configs", nargs=3, default=STAGES, help="stage 1, 2 and 3")
    args = parser.parse_args()
    try:
        if args.step == "prepare":
            prepare(args.data, args.weights)
        elif args.step == "train":
            train(args.work_dir, args.out, args.configs)
        elif args.step == "save":
            save(args.work_dir, args.out, args.configs)
        else:
            pictures = sorted(Path("data/open/coco").glob("*/images/*"))[:20]
            finish(args.out, args.data, pictures, args.target, args.configs[2])
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

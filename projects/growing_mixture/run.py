"""A mixture that grows, in steps that go on where they stopped; see README.md beside this file.

prepare    shrinks the images of three domains and lays them where the configs look for them
run        trains and tests rows, several at a time on each GPU; what is there already is left out
save       writes weights as parts that travel, from which run goes on elsewhere
table      prints the tables of the results
miniature  all of it in two to three minutes on the CPU, on made-up images: figures without meaning
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script of a checkout

import cv2
import torch

from codmoe.engine.checkpoints import read_weights
from codmoe.engine.config import load_config
from codmoe.files import new_folder, save_json
from codmoe.models.build import skip_pretrained
from codmoe.registry import MODELS
from projects.camo_study.pack import packed
from projects.growing_mixture.tables import print_tables
from projects.jobs import Job, run_jobs, seconds_of
from projects.small_ensemble.run import PART, in_parts, joined, prepare_body

CONFIGS = Path(__file__).parent / "configs"
ROWS = (
    *("base_experts", "base_router", "grown", "everything"),
    *("polyp", "camo", "duts", "specialists", "alone"),
)
"""In the order in which they begin: the longest chain first."""
BEFORE = dict(
    base_router=("base_experts",),
    grown=("base_router",),
    specialists=("camo", "duts", "polyp"),
)
"""The rows whose weights a row starts from."""
TESTED = ("base_router", "grown", "everything", "specialists", "alone")
METRICS = ("IoU", "mDice", "MAE")
SIDE, QUALITY, POLYPS = 352, 80, 1000
"""Longer side in pixels and JPEG quality of an image; training images of polyps."""
TWIN = "camourflage_00419"
"""Training image of CAMO that is a test image with black bars."""
FOLDERS = {
    "camo/train": "camo/train",
    "camo/test": "camo/test",
    "duts/train": "duts/train",
    "duts/test": "duts/test",
    "polyp/train": "polyp/TrainDataset",
    "polyp/test/Kvasir": "polyp/TestDataset/Kvasir",
    "polyp/test/CVC-ClinicDB": "polyp/TestDataset/CVC-ClinicDB",
}


def prepare(data: Path, weights: Path) -> None:
    """Shrink images and masks, those of the tests, too, and prepare the body."""
    for target, source in FOLDERS.items():
        if not (out := Path("data/growing") / target).is_dir():
            out.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(out) as folder:
                _shrink(data / source, folder, training=target.endswith("train"))
    parts = [Path("data/growing") / name for name in ("camo", "duts", "polyp/test", "polyp/train")]
    for path in [*parts, prepare_body(weights)]:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        print(f"{path}: {sum(p.stat().st_size for p in files) / 2**20:.1f} MiB")


def _shrink(source: Path, folder: Path, training: bool) -> None:
    images = [p for p in sorted((source / "images").iterdir()) if p.stem != TWIN]
    if training and "polyp" in source.parts:
        images = sorted(images, key=lambda p: hashlib.sha1(p.stem.encode()).hexdigest())[:POLYPS]
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for path in images:
        image = cv2.imread(str(path))
        small = _at_most(image, cv2.INTER_AREA)
        out = folder / f"images/{path.stem}.jpg"
        if small is image and path.suffix == ".jpg":
            shutil.copyfile(path, out)
        else:
            cv2.imwrite(str(out), small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        mask = cv2.imread(str(source / f"masks/{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        small = _at_most(mask, cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"masks/{path.stem}.png"), small)


def _at_most(image: Any, how: int) -> Any:
    height, width = image.shape[:2]
    share = SIDE / max(height, width)
    if share >= 1:
        return image
    return cv2.resize(image, (round(width * share), round(height * share)), interpolation=how)


class Study:
    """Where the files of a study lie.

    Args:
        folder: Work dirs and logs of one seed.
        out: Results and saved weights: what travels.
        configs: Folder of the rows' configs.
        seed: Seed of all rows.
    """

    def __init__(self, folder: Path, out: Path, configs: Path = CONFIGS, seed: int = 0):
        self.folder, self.out, self.configs, self.seed = folder, out, configs, seed

    def config(self, row: str) -> Path:
        return self.configs / f"{row}.py"

    def weights(self, row: str) -> Path:
        return self.folder / "weights" / f"{row}_best.pth"

    def finished(self, row: str) -> Path:
        """File that a training leaves at its end; weights there are from its middle on."""
        return self.folder / row / "finished.json"

    def test(self, row: str) -> Path:
        return self.folder / f"{row}.json"

    def result(self, row: str) -> Path:
        return self.out / f"{row}.json"

    def jobs(self, rows: Sequence[str]) -> list[Job]:
        """A training of each row, and the test of those that the tables name."""
        found = []
        for row in rows:
            options = [f"randomness.seed={self.seed}", f"checkpoint_dir={self.folder / 'weights'}"]
            command = ["tools/train.py", str(self.config(row)), "--auto-resume", "--work-dir"]
            command += [str(self.folder / row), "--cfg-options", *options]
            needs = [self.finished(before) for before in BEFORE.get(row, ())]
            found.append(Job(f"train_{row}", command, self.finished(row), needs))
            if row in TESTED:
                command = ["tools/test.py", str(self.config(row)), str(self.weights(row))]
                command += ["--json", str(self.test(row)), "--quiet"]
                command += ["--work-dir", str(self.folder / f"test_{row}")]
                command += ["--experts"] if row not in ("everything", "alone") else []
                found.append(Job(f"test_{row}", command, self.test(row), [self.finished(row)]))
        return found

    def run(
        self, rows: Sequence[str], per_gpu: int, limit: float = 1e9, gpus: int = 1
    ) -> list[str]:
        """Train, test, and write results; rows that were saved elsewhere are laid in place.

        Returns:
            The jobs that are left.
        """
        for row in ROWS:
            self.restore(row)
        left = run_jobs(self.jobs(rows), self.folder, gpus=gpus, per_gpu=per_gpu, limit=limit)
        self.write()
        return left

    def write(self) -> None:
        """Write the results of what was tested."""
        for row in TESTED:
            if self.test(row).is_file() and not self.result(row).is_file():
                save_json(self.result(row), self.collect(row))

    def collect(self, row: str) -> dict[str, Any]:
        """Per-image values of a row's test, and what its training and those before it took."""
        told = json.loads(self.test(row).read_text())
        result = packed(told, METRICS)
        result["config"] = os.path.relpath(self.config(row))
        made_of = [*BEFORE.get(row, ()), row] if row != "grown" else [row]
        result["training"] = {one: self.training(one) for one in made_of}
        if row == "grown":
            result["kept"] = kept(self.weights("base_router"), self.weights(row))
            result["with_newcomer"] = {
                dataset: {stem: int(weights["polyp"] > 0) for stem, weights in images.items()}
                for dataset, images in told["routing_weights"].items()
            }
        return result

    def training(self, row: str) -> dict[str, Any]:
        told = json.loads(self.finished(row).read_text())
        section = load_config(self.config(row)).model.to_dict()
        skip_pretrained(section)
        parameters = list(MODELS.build(section).parameters())
        logged = (self.folder / "times.jsonl").is_file()
        return dict(
            {key: told[key] for key in ("images", "epochs", "iterations", "best", "best_epoch")},
            # Of a row that was saved elsewhere nobody knows.
            seconds=(seconds_of(self.folder, f"train_{row}") or None) if logged else None,
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
        )

    def save(self, rows: Sequence[str]) -> None:
        """Write the weights of rows that finished as parts."""
        for row in rows:
            folder = self.out / row
            if not self.finished(row).is_file() or folder.is_dir():
                continue
            with new_folder(folder) as part:
                in_parts(self.weights(row).read_bytes(), part, "weights")
                shutil.copyfile(self.finished(row), part / "finished.json")
            print(f"{folder}: {len(list(folder.glob('*.part')))} parts of up to {PART >> 20} MiB")

    def restore(self, row: str) -> None:
        """Lay a row of ``save`` where it counts as finished."""
        if (self.out / row).is_dir() and not self.finished(row).is_file():
            self.weights(row).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(joined(self.out / row, "weights"), self.weights(row))
            self.finished(row).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.out / row / "finished.json", self.finished(row))


def kept(before: Path, after: Path) -> dict[str, Any]:
    """How many tensors a grown mixture began with, buffers among them, and how many of these differ
    in any bit.
    """
    parts = ("backbone", "experts", "router")
    old = {k: v for k, v in read_weights(before).items() if k.split(".")[0] in parts}
    new = {k.replace("router.old.", "router.", 1): v for k, v in read_weights(after).items()}
    differ = [key for key in old if key not in new or not torch.equal(old[key], new[key])]
    return dict(tensors=len(old), differ=len(differ), parts=parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("prepare", "run", "save", "table", "miniature"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--per-gpu", type=int, default=3, help="jobs at a time on each")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which all ends")
    parser.add_argument("--out", type=Path, help="results; default: work_dirs/growing/seedN/out")
    parser.add_argument("--data", type=Path, help="prepare: folder of camo/, duts/, polyp/")
    parser.add_argument("--weights", type=Path, help="prepare: folder of the body's fp16 weights")
    args = parser.parse_args()
    folder = Path(f"work_dirs/growing/seed{args.seed}")
    study = Study(folder, args.out or folder / "out", seed=args.seed)
    try:
        if args.step == "prepare":
            prepare(args.data, args.weights)
        elif args.step == "run":
            sys.exit(1 if study.run(args.rows, args.per_gpu, args.limit, args.gpus) else 0)
        elif args.step == "save":
            study.save(args.rows)
        elif args.step == "table":
            print_tables(study.out)
        else:
            from projects.growing_mixture.miniature import miniature, run_here

            folder = args.out or Path("work_dirs/growing/miniature")
            study = Study(folder, folder / "out", miniature(folder, ROWS))
            run_here(study.jobs(ROWS), folder)
            study.write()
            print_tables(study.out)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

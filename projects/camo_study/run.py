"""Trains, tests and measures rows of the study, several at a time on each GPU:
python projects/camo_study/run.py --rows joint fold0 fold1 router stage3 --seeds 0 1 2 --gpus 2

A job begins as soon as what it needs is there, in the order of seeds and rows; what is there
already is left out. ``alike:A+B`` measures rows side by side. Weights:
checkpoints_moe/camo/seed<S>/, results: results/, logs: work_dirs/camo/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script of a checkout

from projects.jobs import Job, run_jobs

HERE = Path("projects/camo_study")
RESULTS, LOGS = Path("results"), Path("work_dirs/camo")
EXPERTS = ("fpn", "pranet", "sinet", "ujsc", "zoomnet")
BEFORE = dict(
    router=("joint",),
    stage3=("router",),
    own_router=("own_joint",),
    own_stage3=("own_router",),
    apart_router=tuple(f"apart_{name}" for name in EXPERTS),
    apart_fpn_duts=("duts_fpn",),
    joint_duts=("duts_joint",),
    router_duts=("joint_duts",),
    stage3_duts=("router_duts",),
    plain_840_duts=("duts_plain",),
)
"""The rows whose weights a row starts from."""
NAMES = dict(joint="experts_joint", joint_one_scale="experts_one_scale", stage3="ensemble")
"""Names of weights where they are not the row's."""


def weights(row: str, seed: int) -> Path:
    return Path(f"checkpoints_moe/camo/seed{seed}/{NAMES.get(row, row)}_best.pth")


def folds_of(row: str) -> list[str]:
    """The copies by folds that a row waits for; others read those that are in the project."""
    return ["fold0", "fold1"] if row in ("router", "stage3") else []


def jobs_of(row: str, seed: int, args: argparse.Namespace) -> list[Job]:
    if row.startswith("alike:"):
        return [
            alike(row.removeprefix("alike:").split("+"), seed, part, flip)
            for part, flip in (("test", False), ("test", True), ("val", False))
        ]
    # The copies by folds are the same for all seeds of what learns from them.
    fold = "fold" in row
    seed = 0 if fold else seed
    name = row if fold else f"{row}_{seed}"
    config, made = f"{HERE}/configs/{row}.py", weights(row, seed)
    tool = [f"{HERE}/compiled_blocks.py"] if args.compile else []
    options = [f"randomness.seed={seed}", f"checkpoint_dir={made.parent}", *args.options]
    training = [*tool, "tools/train.py", config, "--work-dir", f"{LOGS}/{name}"]
    testing = ["tools/test.py", config, str(made), "--experts", "--work-dir", f"{LOGS}/test_{name}"]
    testing += ["--json", f"{RESULTS}/{name}.json"]
    needs = [RESULTS / f"{copy}.json" for copy in folds_of(row)]
    needs += [weights(before, seed) for before in BEFORE.get(row, ())]
    return [
        Job(f"train_{name}", [*training, "--cfg-options", *options], made, needs),
        Job(f"test_{name}", testing, RESULTS / f"{name}.json", [made]),
    ]


def alike(rows: list[str], seed: int, part: str, flip: bool) -> Job:
    """All experts of some rows side by side."""
    file = RESULTS / f"alike_{'+'.join(rows)}_{part}{'_flip' if flip else ''}_{seed}.json"
    made = [weights(row, seed) for row in rows]
    command = [f"{HERE}/measure.py", *(f"{r}={r}:{w}" for r, w in zip(rows, made, strict=True))]
    command += ["--part", part, "--json", str(file), "--work-dir", f"{LOGS}/{file.stem}"]
    command += ["--subsets", *rows, *(["--flip"] if flip else [])]
    return Job(file.stem, command, file, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", required=True, help="configs, or alike:A+B")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--per-gpu", type=int, default=2, help="jobs at a time on each")
    parser.add_argument("--compile", action="store_true", help="the ViT's blocks, in training")
    parser.add_argument("--options", nargs="*", default=[], help="key=value, of every training")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which all ends")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    jobs = [j for seed in args.seeds for row in args.rows for j in jobs_of(row, seed, args)]
    left = run_jobs(jobs, LOGS, gpus=args.gpus, per_gpu=args.per_gpu, limit=args.limit)
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()

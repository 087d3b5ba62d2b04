"""Train and test the rows of the study: python -m projects.study.run --gpus 2 --per-gpu 3

Rows are names or patterns of configs/study ("polyp_*"), the most wanted first; all by default. Goes
on from where it was stopped.
"""

from __future__ import annotations

import argparse
import sys

from projects.study.plan import study_rows
from projects.study.runs import run_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="rows, patterns of rows, or config files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--gpus", type=int, default=1, help="0 for the CPU")
    parser.add_argument("--per-gpu", type=int, default=2, help="runs that share a GPU")
    parser.add_argument(
        "--workers", type=int, help="loader workers per run; by the cores if absent"
    )
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop everything then")
    parser.add_argument("--work-dir", default="work_dirs/study", help="logs, weights and state")
    parser.add_argument("--out", help="folder of the small results; WORK_DIR/results by default")
    parser.add_argument("--keep-weights", nargs="+", default=[], metavar="ROWS", help="patterns")
    parser.add_argument("--list", action="store_true", help="print the rows and leave")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="[ROWS:]KEY=VALUE", help="override configs"
    )
    args = parser.parse_args()
    try:
        rows = study_rows(args.rows)
        if args.list:
            print("\n".join(rows))
            return
        study = run_study(
            rows,
            seeds=args.seeds,
            work_dir=args.work_dir,
            out=args.out,
            options=args.cfg_options,
            gpus=args.gpus,
            per_gpu=args.per_gpu,
            workers=args.workers,
            time_limit=args.time_limit,
            keep_weights=args.keep_weights,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if study.signal is not None:
        sys.exit(128 + study.signal)
    if any(entry["state"] == "failed" for entry in study.status.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Time training on 1 and on N GPUs: python tools/analysis/benchmark_scaling.py
configs/experts/joint.py --gpus 2"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.engine.scaling import benchmark_scaling
from codmoe.engine.scaling_variants import DEFAULT_VARIANTS, VARIANTS
from codmoe.engine.step_timing import work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (experts/joint)")
    parser.add_argument("--gpus", type=int, default=2, help="processes to compare with one")
    parser.add_argument("--steps", type=int, default=60, help="training steps that count")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them")
    parser.add_argument("--variants", nargs="+", default=DEFAULT_VARIANTS, metavar="A+B",
                        help="of " + ", ".join(VARIANTS))  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="also with a compiled backbone")
    parser.add_argument("--data", default="synthetic", help="synthetic, on the device, or config")
    parser.add_argument(
        "--size", type=int, help="side of synthetic images; the config's by default"
    )
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--checkpoint", help="weights to start from; random ones by default")
    parser.add_argument("--json", help="also write the figures to this file, after every run")
    parser.add_argument(
        "--reference", metavar="FILE", help="take runs of one process from an earlier --json"
    )
    parser.add_argument("--work-dir", default="work_dirs/scaling", help="logs")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run")
    parser.add_argument("--budget", type=float, help="seconds after which no run is started")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # one process of one run
    parser.add_argument("--launcher", default="none", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.launcher)
        leave_cpu_process_group()
        return
    settings = {key: getattr(args, key) for key in (
        "gpus steps warmup data size data_root checkpoint reference work_dir timeout budget".split()
    )}  # fmt: skip
    variants = [*args.variants, *(["compile"] if args.compile else [])]
    try:
        options = parse_options(args.cfg_options)
        benchmark_scaling(
            args.config, variants=variants, options=options, json_file=args.json, **settings
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

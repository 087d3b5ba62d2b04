"""Test a checkpoint: python tools/test.py configs/ensemble/stage3.py
checkpoints_moe/ensemble_best.pth"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import load_config, parse_options
from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.engine.launch import prepare, set_data_root
from codmoe.engine.testing import test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (ensemble/stage3)")
    parser.add_argument("checkpoint", help="weights, e.g. checkpoints_moe/ensemble_best.pth")
    parser.add_argument(
        "--experts", action="store_true", help="also each expert, uniform and oracle"
    )
    parser.add_argument("--json", help="result file; WORK_DIR/test.json by default, .md beside it")
    parser.add_argument("--out", help="new folder for prediction maps, 8-bit PNG, original size")
    parser.add_argument("--grid", help="picture file: image, truth, experts, mixture, weights")
    parser.add_argument("--extremes", help="folder for pictures of the best, median, worst images")
    parser.add_argument(
        "--compile", nargs="*", metavar="KEY=VALUE", help="faster: CUDA graphs; e.g. dtype=fp16"
    )
    parser.add_argument("--work-dir", help="logs; work_dirs/NAME by default")
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help="set by torchrun")
    args = parser.parse_args()
    try:
        cfg = load_config(args.config, parse_options(args.cfg_options))
        if args.data_root:
            set_data_root(cfg, args.data_root)
        prepare(cfg, launcher=args.launcher, work_dir=args.work_dir)
        outputs = dict(
            json_file=args.json, out_dir=args.out, grid=args.grid, extremes=args.extremes
        )
        compiled = args.compile is not None and parse_options(args.compile)
        test(cfg, args.checkpoint, experts=args.experts, compile=compiled, **outputs)
        leave_cpu_process_group()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

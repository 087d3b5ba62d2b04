"""Train one stage: python tools/train.py configs/experts/sinet.py"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import load_config, parse_options
from codmoe.engine.ddp import leave_cpu_process_group
from codmoe.engine.launch import prepare, set_data_root, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (ensemble/stage3)")
    parser.add_argument(
        "--work-dir", help="logs and training checkpoints; work_dirs/NAME by default"
    )
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--resume", action="store_true", help="go on from the work dir's last one")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help="set by torchrun")
    args = parser.parse_args()
    try:
        cfg = load_config(args.config, parse_options(args.cfg_options))
        if args.data_root:
            set_data_root(cfg, args.data_root)
        cfg.resume = args.resume
        train(prepare(cfg, launcher=args.launcher, work_dir=args.work_dir))
        leave_cpu_process_group()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

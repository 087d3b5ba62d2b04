"""Images/s of the loader alone: python tools/analysis/benchmark_loader.py CONFIG --target 1000"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.engine.loader_benchmark import benchmark_loader

CACHES = dict(config=[None], on=[True], off=[False], both=[False, True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (ensemble/stage3)")
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--part", choices=("train", "val", "test"), default="train")
    parser.add_argument("--workers", type=int, nargs="+", help="by default up to all cores")
    parser.add_argument("--cache", choices=CACHES, default="config", help="of decoded images")
    parser.add_argument(
        "--target", type=float, default=1000, help="images/s that the model takes (1000)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="for each number of workers (5)")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args()
    try:
        benchmark_loader(
            args.config,
            part=args.part,
            workers=args.workers,
            caches=CACHES[args.cache],
            target=args.target,
            seconds=args.seconds,
            data_root=args.data_root,
            options=parse_options(args.cfg_options),
            json_file=args.json,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Samples after their augmentation: python tools/data/browse.py CONFIG --out samples.png"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.inference.browse import browse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (ensemble/stage3)")
    parser.add_argument("--out", help="picture of samples to write (png, pdf, jpg)")
    parser.add_argument("--attributes", help="page of plots on size, contrast, place to write")
    parser.add_argument("--data-root", help="folder of the data set, instead of the config's")
    parser.add_argument("--part", choices=("train", "val", "test"), default="train")
    parser.add_argument("--count", type=int, default=24, help="samples, evenly spread (24)")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the augmentation")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args()
    try:
        browse(
            args.config,
            out=args.out,
            attributes=args.attributes,
            part=args.part,
            count=args.count,
            columns=args.columns,
            seed=args.seed,
            data_root=args.data_root,
            options=parse_options(args.cfg_options),
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

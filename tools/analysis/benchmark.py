"""Time and memory of a model by route: python tools/analysis/benchmark.py ensemble/stage3
--precisions fp32 bf16 --executions eager compiled prepared --routes auto all pranet,sinet"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.inference.benchmark import benchmark

MOVED = ("--experts", "--top-k", "--layouts", "--no-parts", "--parts", "--train", "--plot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("config", help="config file, or name of a shipped one (ensemble/stage3)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images a call (1 8)")
    add("--sizes", type=int, nargs="+", default=[448], help="sides of the images (448)")
    add("--routes", nargs="+", default=["auto"], metavar="ROUTE",
        help="auto (the router's), all, or names such as sinet,ujsc")  # fmt: skip
    add("--precisions", nargs="+", default=["fp32"], help="fp32 fp16 bf16")
    add("--executions", nargs="+", default=["eager"], help="eager compiled cudagraph prepared")
    add("--repeats", type=int, default=30, help="calls that count (30)")
    add("--warmup", type=int, default=5, help="calls before them (5)")
    add("--device", help="cuda, cuda:1, cpu; the first GPU if there is one")
    add("--checkpoint", help="weights; the router chooses blindly without")
    add("--json", dest="json_file", help="also write the figures to this file")
    add("--cfg-options", dest="options", nargs="+", metavar="KEY=VALUE", help="override the config")
    for option in (word.split("=")[0] for word in sys.argv[1:]):
        if option in MOVED:
            sys.exit(f"error: {option} is an option of: python -m benchmarks.model, in a checkout")
    settings = vars(parser.parse_args())
    try:
        settings["options"] = parse_options(settings["options"])
        benchmark(settings.pop("config"), **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Time and memory of a model: python tools/analysis/benchmark.py ensemble/stage3 --precisions fp32
bf16 --executions eager compiled cudagraph --routes auto all pranet,sinet --json FILE"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.inference.benchmark import benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="config file, or name of a shipped one (ensemble/stage3)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images a call (1 8)")
    add("--sizes", type=int, nargs="+", default=[448], help="sides of the images (448)")
    add("--experts", type=int, nargs="+", default=[None], help="numbers of experts, with copies")
    add("--top-k", type=int, nargs="+", default=[None], help="experts an image")
    add("--routes", nargs="+", default=["auto"], metavar="ROUTE",
        help="auto (the router's), all, or names such as sinet,ujsc")  # fmt: skip
    add("--precisions", nargs="+", default=["fp32"], help="fp32 fp16 bf16")
    add("--executions", nargs="+", default=["eager"], help="eager compiled cudagraph engine")
    add("--layouts", nargs="+", default=["channels_last"], help="channels_last contiguous")
    add("--no-parts", dest="parts", action="store_false", help="leave the parts out")
    add("--train", action="store_true", help="also time training steps of the config")
    add("--repeats", type=int, default=30, help="calls that count (30)")
    add("--warmup", type=int, default=5, help="calls before them (5)")
    add("--device", help="cuda, cuda:1, cpu; the first GPU if there is one")
    add("--checkpoint", help="weights; the router chooses blindly without")
    add("--json", dest="json_file", help="also write the figures to this file")
    add("--plot", help="picture of latency and memory against what has several values")
    add("--cfg-options", dest="options", nargs="+", metavar="KEY=VALUE", help="override the config")
    settings = vars(parser.parse_args())
    try:
        settings["options"] = parse_options(settings["options"])
        benchmark(settings.pop("config"), **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

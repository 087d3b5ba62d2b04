"""Time and memory of a model by route:

python tools/analysis/benchmark.py ensemble/stage3 --precisions fp32 bf16 \\
    --executions eager compiled prepared --routes auto all pranet,sinet
"""

import sys

from codmoe.cli import CONFIG, main, option

MOVED = ("--experts", "--top-k", "--layouts", "--no-parts", "--parts", "--train", "--plot")
OPTIONS = (
    CONFIG,
    option("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images a call (1 8)"),
    option("--sizes", type=int, nargs="+", default=[448], help="sides of the images (448)"),
    option(
        "--routes",
        nargs="+",
        default=["auto"],
        metavar="ROUTE",
        help="auto (the router's), all, or names such as sinet,ujsc",
    ),
    option("--precisions", nargs="+", default=["fp32"], help="fp32 fp16 bf16"),
    option("--executions", nargs="+", default=["eager"], help="eager compiled cudagraph prepared"),
    option("--repeats", type=int, default=30, help="calls that count (30)"),
    option("--warmup", type=int, default=5, help="calls before them (5)"),
    option("--device", help="cuda, cuda:1, cpu; the first GPU if there is one"),
    option("--checkpoint", help="weights; the router chooses blindly without"),
    option("--json", dest="json_file", help="also write the figures to this file"),
    option("--cfg-options", dest="options", nargs="+", metavar="KEY=VALUE", help="as of training"),
)


def call(benchmark, args) -> None:
    from codmoe.engine.config import parse_options

    settings = {name: value for name, value in vars(args).items() if name != "debug"}
    settings["options"] = parse_options(settings["options"])
    benchmark(settings.pop("config"), **settings)


def by_route(args) -> None:
    from codmoe.inference.benchmark import benchmark

    call(benchmark, args)


if __name__ == "__main__":
    for word in (word.split("=")[0] for word in sys.argv[1:]):
        if word in MOVED:
            sys.exit(f"error: {word} is an option of: python -m benchmarks.model, in a checkout")
    main(by_route, *OPTIONS, description=__doc__)

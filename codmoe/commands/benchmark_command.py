"""Time and memory of a model by route:

codmoe benchmark ensemble/stage3 --precisions fp32 bf16 \\
    --executions eager compiled prepared --routes auto all pranet,sinet
"""

from codmoe.commands.options import CONFIG, QUIET, option, pair, weights, whole

SHARED = (
    CONFIG,
    option("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images a call (1 8)"),
    option(
        "--sizes",
        type=whole(most=16_384),
        nargs="+",
        help="sides of the images; by default the config's",
    ),
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
    option("--checkpoint", type=weights, help="weights; the router chooses blindly without"),
    option("--json", dest="json_file", help="also write the figures to this file"),
    option(
        "--cfg-options",
        dest="options",
        nargs="+",
        type=pair,
        metavar="KEY=VALUE",
        help="as of training",
    ),
    QUIET,
)
OPTIONS = SHARED


def call(benchmark, args) -> None:
    from codmoe.engine.config import parse_options

    settings = {
        name: value for name, value in vars(args).items() if name not in ("debug", "quiet", "words")
    }
    settings["options"] = parse_options(settings["options"])
    benchmark(settings.pop("config"), **settings)


def run(args) -> None:
    from codmoe.inference.benchmark import benchmark

    call(benchmark, args)

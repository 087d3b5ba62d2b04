"""Parameters and operations: codmoe summary ensemble/stage3"""

from codmoe.commands.options import CONFIG, QUIET, option, whole

OPTIONS = (
    CONFIG,
    option(
        "--size",
        type=whole(most=16_384),
        help="side of the image in pixels; by default the config's",
    ),
    option("--json", help="also write the figures to this file"),
    QUIET,
)


def run(args) -> None:
    from codmoe.inference.summary import report

    report(args.config, args.size, args.json)

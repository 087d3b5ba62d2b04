"""Parameters and operations: python tools/analysis/model_summary.py ensemble/stage3"""

from codmoe.cli import CONFIG, main, option

OPTIONS = (
    CONFIG,
    option("--size", type=int, default=448, help="side of the image in pixels"),
    option("--json", help="also write the figures to this file"),
)


def run(args) -> None:
    from codmoe.inference.summary import report

    report(args.config, args.size, args.json)


if __name__ == "__main__":
    main(run, *OPTIONS, description=__doc__)

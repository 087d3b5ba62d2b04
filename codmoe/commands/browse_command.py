"""Samples after their augmentation: codmoe browse CONFIG --out samples.png"""

from codmoe.commands.options import CFG_OPTIONS, CONFIG, DATA, QUIET, option, whole

OPTIONS = (
    CONFIG,
    option("--out", help="picture of samples to write (png, pdf, jpg)"),
    option("--attributes", help="page of plots on size, contrast, place to write"),
    *DATA,
    option("--part", choices=("train", "val", "test"), default="train"),
    option("--count", type=int, default=24, help="samples, evenly spread (24)"),
    option("--columns", type=int, default=6),
    option("--seed", type=whole(0, 2**32 - 1), default=0, help="of the augmentation"),
    CFG_OPTIONS,
    QUIET,
)


def run(args) -> None:
    from codmoe.engine.config import parse_options
    from codmoe.inference.browse import browse

    browse(
        args.config,
        out=args.out,
        attributes=args.attributes,
        part=args.part,
        count=args.count,
        columns=args.columns,
        seed=args.seed,
        data=(args.data_root, args.images, args.masks),
        options=parse_options(args.cfg_options),
    )

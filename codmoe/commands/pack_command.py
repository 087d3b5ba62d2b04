"""Make a checkpoint shippable, in 16 or 8 bits and its config inside:

codmoe pack checkpoints_moe/small/ensemble_best.pth \\
    codmoe/weights/small_ensemble.safetensors
"""

from codmoe.commands.options import QUIET, checkpoint, option

OPTIONS = (
    option("checkpoint", type=checkpoint, help="weights of a stage, e.g. ensemble_best.pth"),
    option("out", help="file to write, *.safetensors"),
    option("--limit", type=int, default=30_000_000, help="bytes that it may have"),
    option("--eight-bit", action="store_true", help="8-bit weights, half the size again"),
    option("--pictures", help="folder to measure the rounding on; by default eight synthetic ones"),
    QUIET,
)


def run(args) -> None:
    from codmoe.inference.export.pack import pack

    found = pack(
        args.checkpoint, args.out, args.limit, eight_bit=args.eight_bit, pictures=args.pictures
    )
    print(
        f"wrote {args.out}: {found['bytes']:,} bytes; rounding changes a probability by "
        f"{found['change']:.5f} on average (worst picture) and {found['mask']:.2%} of a mask"
    )

"""Make a checkpoint shippable, half precision and its config inside:

codmoe pack checkpoints_moe/small/ensemble_best.pth \\
    codmoe/weights/small_ensemble.safetensors
"""

from codmoe.commands.options import QUIET, checkpoint, option

OPTIONS = (
    option("checkpoint", type=checkpoint, help="weights of a stage, e.g. ensemble_best.pth"),
    option("out", help="file to write, *.safetensors"),
    option("--limit", type=int, default=20_000_000, help="bytes that it may have"),
    QUIET,
)


def run(args) -> None:
    from codmoe.inference.export.pack import pack

    found = pack(args.checkpoint, args.out, args.limit)
    print(
        f"wrote {args.out}: {found['bytes']:,} bytes; rounding changes a probability by "
        f"{found['change']:.5f} on average (worst of eight images)"
    )

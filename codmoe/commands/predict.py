"""Predict masks: codmoe predict IMAGE_OR_DIR --out DIR [--checkpoint FILE]"""

from codmoe.commands.options import COMPILE, QUIET, TRUST_CODE, checkpoint, model, option

OPTIONS = (
    option("inputs", nargs="+", help="image files and folders of images"),
    option(
        "--checkpoint",
        type=checkpoint,
        help="weights, e.g. ensemble_best.pth; by default those that ship",
    ),
    option("--out", required=True, help="folder for the maps, 8-bit PNG, original size"),
    option("--config", type=model, help="config file or name; by default the checkpoint's own"),
    option("--threshold", type=float, help="0 to 1: write masks of 0 and 255, not maps"),
    option("--size", type=int, help="side of the network's input; by default the config's"),
    option("--batch-size", type=int, default=8),
    option("--device", help="by default the first GPU if there is one"),
    COMPILE,
    TRUST_CODE,
    QUIET,
)


def run(args) -> None:
    from codmoe import Inferencer
    from codmoe.engine.config import parse_options
    from codmoe.inference.inferencer import check_threshold, collect
    from codmoe.messages import printable

    # Before weights are loaded or fetched.
    check_threshold(args.threshold)
    pictures = collect(args.inputs)
    inferencer = Inferencer(
        args.config,
        args.checkpoint,
        image_size=args.size,
        device=args.device,
        batch_size=args.batch_size,
        trust_code=args.trust_code,
        compile=args.compile is not None and parse_options(args.compile),
    )
    count = 0
    for prediction in inferencer.stream(pictures, out_dir=args.out, threshold=args.threshold):
        count += 1
        weights = "  ".join(f"{name} {w:.2f}" for name, w in prediction.weights.items())
        path = printable(str(prediction.path))
        print(f"{path}  object {prediction.mask.mean():.1%}  {weights}")
    print(f"wrote {count} map(s) to {args.out}")

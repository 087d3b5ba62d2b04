"""Choose the threshold of masks on images of yours, and store it in the weights:

codmoe calibrate checkpoints_moe/ensemble_best.pth --images photos --masks truth
"""

from codmoe.commands.options import (
    MODEL,
    QUIET,
    TILE,
    TRUST_CODE,
    VIEWS,
    checkpoint,
    inferencer,
    option,
    whole,
)

OPTIONS = (
    option("checkpoint", type=checkpoint, help="weights; the threshold is written into this file"),
    option("--images", required=True, help="folder of images, not those of a test"),
    option("--masks", required=True, help="folder of their masks, of equal names"),
    *MODEL,
    option("--batch-size", type=whole(), default=8),
    TILE,
    *VIEWS,
    TRUST_CODE,
    QUIET,
)


def run(args) -> None:
    from codmoe.datasets.layouts import find_pairs
    from codmoe.engine.checkpoints import store_threshold
    from codmoe.inference.calibration import calibrate

    find_pairs(args.images, args.masks)  # before weights are loaded
    found = calibrate(inferencer(args, batch_size=args.batch_size), args.images, args.masks)
    store_threshold(args.checkpoint, found["threshold"])
    print(
        f"threshold {found['threshold']:.3f} stored in {args.checkpoint}: mean IoU "
        f"{found['IoU']:.4f} on {found['images']:,} images, at 0.5 {found['IoU_at_half']:.4f}"
    )

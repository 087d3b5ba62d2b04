"""Export a model, compared with what it came from:

codmoe export checkpoints_moe/ensemble_best.pth --format onnx-sparse --out exported
"""

import argparse

from codmoe.commands.options import QUIET, TRUST_CODE, images, model, option, whole

OPTIONS = (
    option(
        "model", help="checkpoint, or 'small', which ships; a config: random weights, for speed"
    ),
    option(
        "--format", required=True, help="onnx, onnx-sparse, torch-export, safetensors, compiled"
    ),
    option("--out", required=True, help="folder to make"),
    option("--config", type=model, help="config of a checkpoint that does not hold its own"),
    option(
        "--size", type=whole(most=16_384), nargs="+", help="side, or height and width, of images"
    ),
    option(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with the model; on by default",
    ),
    option("--images", type=images, help="image or folder to compare on; synthetic by default"),
    option(
        "--int8",
        action="store_true",
        help="8-bit ONNX, its ranges from every second one of --images, of your own kind",
    ),
    option("--batches", type=whole(), nargs="+", help="of compiled: images at a time; 1"),
    option("--dtype", help="of compiled: bf16, fp16, fp32; by default what suits the device"),
    option("--device", help="of compiled: cpu, which is the default, or cuda"),
    TRUST_CODE,
    QUIET,
)
LOW_IOU = 0.9
"""Below this an 8-bit model is no stand-in for its own."""


def run(args) -> None:
    from codmoe.inference.export.exporting import export, model_for_export
    from codmoe.inference.inputs import check_readable, collect
    from codmoe.messages import note

    size = args.size
    if size and len(size) > 2:
        raise ValueError(f"--size takes a side, or height and width, not {len(size)} numbers")
    images = collect(args.images) if args.images else None
    check_readable(images or ())  # before weights are loaded
    model = model_for_export(args.model, args.config, trust_code=args.trust_code)
    found = export(
        model,
        args.out,
        format=args.format,
        size=tuple(size * 2)[:2] if size else None,
        check=args.check,
        images=images,
        int8=args.int8,
        batches=args.batches,
        dtype=args.dtype,
        device=args.device,
    )
    for name, value in found.items():
        print(f"{name:12} {value:.3g}" if isinstance(value, float) else f"{name:12} {value}")
    if found.get("iou", 1.0) < LOW_IOU:
        note("8 bit changes these masks much; give --images, some dozens of your own kind")
    print(f"wrote {args.out}")

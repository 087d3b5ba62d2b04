"""Export a model, compared with what it came from: python tools/export.py
checkpoints_moe/ensemble_best.pth --format onnx-sparse --out exported"""

from __future__ import annotations

import argparse
import sys

from codmoe.inference.export.exporting import FORMATS, export, model_for_export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="checkpoint, or 'small', which ships; a config: random weights, for speed"
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--config", help="config of a checkpoint that does not hold its own")
    parser.add_argument("--size", type=int, nargs="+", help="side, or height and width, of images")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with the model; on by default",
    )
    parser.add_argument("--images", help="image or folder to compare on; synthetic by default")
    parser.add_argument(
        "--trust-code", action="store_true", help="import what the checkpoint's config asks for"
    )
    args = parser.parse_args()
    size = args.size
    if size and len(size) > 2:
        sys.exit(f"error: --size takes a side, or height and width, not {len(size)} numbers")
    try:
        model = model_for_export(args.model, args.config, trust_code=args.trust_code)
        found = export(
            model,
            args.out,
            format=args.format,
            size=tuple(size * 2)[:2] if size else None,
            check=args.check,
            images=args.images,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    for name, value in found.items():
        print(f"{name:12} {value:.2e}" if isinstance(value, float) else f"{name:12} {value}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

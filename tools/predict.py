"""Predict masks: python tools/predict.py IMAGE_OR_DIR --out DIR [--checkpoint FILE]"""

from __future__ import annotations

import argparse
import sys

from codmoe import Inferencer
from codmoe.engine.config import parse_options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+", help="image files, or one folder of images")
    parser.add_argument(
        "--checkpoint", help="weights, e.g. ensemble_best.pth; by default those that ship"
    )
    parser.add_argument(
        "--out", required=True, help="folder for the maps, 8-bit PNG, original size"
    )
    parser.add_argument("--config", help="config file or name; by default the checkpoint's own")
    parser.add_argument(
        "--threshold", type=float, help="write masks of 0 and 255, not probabilities"
    )
    parser.add_argument(
        "--size", type=int, help="side of the network's input; by default the config's"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", help="by default the first GPU if there is one")
    parser.add_argument(
        "--compile", nargs="*", metavar="KEY=VALUE", help="faster: CUDA graphs; e.g. dtype=fp16"
    )
    parser.add_argument(
        "--trust-code", action="store_true", help="import what the checkpoint's config asks for"
    )
    args = parser.parse_args()
    try:
        inferencer = Inferencer(
            args.config,
            args.checkpoint,
            image_size=args.size,
            device=args.device,
            batch_size=args.batch_size,
            trust_code=args.trust_code,
            compile=args.compile is not None and parse_options(args.compile),
        )
        inputs = args.inputs[0] if len(args.inputs) == 1 else args.inputs
        count = 0
        for prediction in inferencer.stream(inputs, out_dir=args.out, threshold=args.threshold):
            count += 1
            weights = "  ".join(f"{name} {w:.2f}" for name, w in prediction.weights.items())
            print(f"{prediction.path}  object {prediction.mask.mean():.1%}  {weights}")
        print(f"wrote {count} map(s) to {args.out}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

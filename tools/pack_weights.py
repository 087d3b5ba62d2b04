"""Make a checkpoint shippable, half precision and its config inside: python tools/pack_weights.py
checkpoints_moe/small/ensemble_best.pth codmoe/weights/small_ensemble.safetensors"""

from __future__ import annotations

import argparse
import sys

from codmoe.inference.export.pack import LIMIT, pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="weights of a stage, e.g. ensemble_best.pth")
    parser.add_argument("out", help="file to write, *.safetensors")
    parser.add_argument("--limit", type=int, default=LIMIT, help="bytes that it may have")
    args = parser.parse_args()
    try:
        found = pack(args.checkpoint, args.out, args.limit)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(
        f"wrote {args.out}: {found['bytes']:,} bytes; rounding changes a probability by "
        f"{found['change']:.5f} on average (worst of eight images)"
    )


if __name__ == "__main__":
    main()

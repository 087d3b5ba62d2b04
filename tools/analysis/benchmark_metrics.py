"""Time all measures beside PySODMetrics: python tools/analysis/benchmark_metrics.py"""

from __future__ import annotations

import argparse
import sys

import torch

from codmoe.evaluation.benchmark import benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=448, help="side of the maps in pixels")
    parser.add_argument("--images", type=int, default=64, help="number of maps")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--device", help="cuda, or cpu alone; by default what there is")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        benchmark(
            size=args.size,
            images=args.images,
            repeats=args.repeats,
            devices=["cpu"] if device == "cpu" else ["cpu", device],
            json_file=args.json,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Milliseconds an image on a CPU: python tools/analysis/benchmark_latency.py small"""

from __future__ import annotations

import argparse
import sys

from codmoe.inference.latency import PROGRAMS, latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="checkpoint, 'small', which ships, or a config, with random weights"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="sides in pixels (256)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and onnxruntime (2)")
    parser.add_argument("--runs", type=int, default=10, help="timed runs a program and route (10)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--limit", type=float, help="fail if a route takes more milliseconds")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    try:
        latency(
            args.model,
            sizes=args.sizes,
            threads=args.threads,
            runs=args.runs,
            programs=args.programs,
            limit=args.limit,
            json_file=args.json,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

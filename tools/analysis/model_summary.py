"""Parameters and operations: python tools/analysis/model_summary.py ensemble/stage3"""

from __future__ import annotations

import argparse
import sys

from codmoe.inference.summary import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (ensemble/stage3)")
    parser.add_argument("--size", type=int, default=448, help="side of the image in pixels")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    try:
        report(args.config, args.size, args.json)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

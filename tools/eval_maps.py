"""Score saved maps: python tools/eval_maps.py --pred maps/CAMO --gt CAMO/GT --json camo.json"""

from __future__ import annotations

import argparse
import sys

from codmoe.evaluation.score_maps import score_folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pred", nargs="+", required=True, help="folder(s) of maps, 8 or 16 bits")
    parser.add_argument("--gt", nargs="+", required=True, help="folder of masks for each of them")
    parser.add_argument("--json", help="result file, for tools/analysis/compare.py")
    parser.add_argument("--method", help="its name in tables; by default the folder's")
    parser.add_argument("--datasets", nargs="+", help="names in tables; by default the folders'")
    parser.add_argument(
        "--resize", action="store_true", help="bring maps to their masks' size, bilinear"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--workers", type=int, help="threads; by default one a core")
    parser.add_argument(
        "--backend",
        choices=("torch", "pysodmetrics"),
        default="torch",
        help="pysodmetrics: the field's measures by PySODMetrics itself, slower",
    )
    args = parser.parse_args()
    try:
        score_folders(
            args.pred,
            args.gt,
            json_file=args.json,
            method=args.method,
            datasets=args.datasets,
            resize=args.resize,
            device=args.device,
            workers=args.workers,
            backend=args.backend,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

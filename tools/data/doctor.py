"""Examine data sets before training: python tools/data/doctor.py data --json doctor.json

Recognises COD10K-v3, CAMO, CHAMELEON, NC4K, TrainDataset + TestDataset and plain pairs of folders.
Exit code 1 if there is an error, 0 with warnings alone.
"""

from __future__ import annotations

import argparse
import sys

from codmoe.datasets.doctor.diagnosis import examine, print_report
from codmoe.files import save_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT", help="folder of one data set or of several")
    parser.add_argument("--json", metavar="FILE", help="write every finding with all its paths")
    parser.add_argument("--image-dir", help="with --mask-dir: folders below ROOT of other names")
    parser.add_argument("--mask-dir")
    parser.add_argument("--workers", type=int, help="processes; all cores by default")
    args = parser.parse_args()
    try:
        report = examine(
            args.root, image_dir=args.image_dir, mask_dir=args.mask_dir, workers=args.workers
        )
        print_report(report)
        if args.json:
            print(f"json: {save_json(args.json, report.payload())}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if report.errors else 0)


if __name__ == "__main__":
    main()

"""Make the report of a run again: python tools/analysis/report.py work_dirs/stages"""

from __future__ import annotations

import argparse
import sys

from codmoe.visualization.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", help="--work-dir of tools/run_stages.py")
    parser.add_argument("--out", help="HTML file; WORK_DIR/report.html by default")
    args = parser.parse_args()
    try:
        print(f"report: {write_report(args.work_dir, args.out)}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Tables of a study: python tools/analysis/study.py work_dirs/study/results --out study.md"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.study_plan import PRIORITY
from codmoe.evaluation.study_report import report
from codmoe.evaluation.study_results import load_results
from codmoe.files import replacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="folder of the results of tools/run_study.py")
    parser.add_argument("--out", help="Markdown file; without it the tables are printed")
    parser.add_argument("--samples", type=int, default=10_000, help="draws of the bootstrap")
    args = parser.parse_args()
    try:
        text = report(load_results(args.results), rows_first=PRIORITY, samples=args.samples)
        if not args.out:
            print(text)
            return
        with replacing(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"tables: {args.out}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

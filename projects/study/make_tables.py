"""Tables of a study: python -m projects.study.make_tables work_dirs/study/results --out study.md"""

from __future__ import annotations

import argparse
import sys

from codmoe.files import replacing
from projects.study.plan import PRIORITY
from projects.study.report import report
from projects.study.results import load_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="folder of the results of projects/study/run.py")
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

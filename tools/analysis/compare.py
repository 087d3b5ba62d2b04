"""Put results side by side: python tools/analysis/compare.py a.json b.json --out comparison"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codmoe.evaluation.compare import compare, load_methods, print_comparison, write_comparison
from codmoe.visualization.curves import CURVES, save_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", help="JSON of tools/test.py or tools/eval_maps.py")
    parser.add_argument("--names", nargs="+", help="one per file; checkpoint or method by default")
    parser.add_argument("--sources", nargs="+", help="mixture by default; an expert's name; all")
    parser.add_argument("--metrics", nargs="+", help="columns, such as Sm wFm meanEm MAE")
    parser.add_argument("--datasets", nargs="+", help="all by default")
    parser.add_argument("--baseline", help="method the others are subtracted from; the first")
    parser.add_argument("--samples", type=int, default=10_000, help="draws of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out", help="folder for the tables (md, tex, csv) and curves")
    parser.add_argument("--plots", choices=("png", "pdf", "svg"), default="png")
    args = parser.parse_args()
    try:
        methods = load_methods(args.results, names=args.names, sources=args.sources)
        comparison = compare(
            methods,
            metrics=args.metrics,
            datasets=args.datasets,
            baseline=args.baseline,
            samples=args.samples,
            seed=args.seed,
        )
        print_comparison(comparison)
        if args.out:
            files = write_comparison(comparison, args.out)
            if comparison.without_curves:
                print(f"without curves, so not drawn: {', '.join(comparison.without_curves)}")
            for kind in CURVES if comparison.curves else ():
                path = Path(args.out) / f"{kind}.{args.plots}"
                files.append(save_curves(comparison.curves, path, kind=kind))
            print(f"wrote {', '.join(file.name for file in files)} to {args.out}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Put results side by side: codmoe compare a.json b.json --out comparison"""

from pathlib import Path

from codmoe.commands.options import QUIET, option, there

result = there(
    "The result file {} does not exist; make it with --json of codmoe test or codmoe eval"
)
OPTIONS = (
    option("results", nargs="+", type=result, help="JSON of codmoe test or codmoe eval"),
    option("--names", nargs="+", help="one per file, one for all seeds of a method"),
    option("--sources", nargs="+", help="mixture by default; an expert's name; all"),
    option("--metrics", nargs="+", help="columns, such as Sm wFm meanEm MAE"),
    option("--datasets", nargs="+", help="all by default"),
    option("--baseline", help="method the others are subtracted from; the first"),
    option("--out", help="folder for the tables (md, tex, csv) and curves"),
    option("--plots", choices=("png", "pdf", "svg"), default="png"),
    QUIET,
)


def run(args) -> None:
    from codmoe.evaluation.compare import compare, load_methods, print_comparison, write_comparison
    from codmoe.visualization.curves import CURVES, save_curves

    comparison = compare(
        load_methods(args.results, names=args.names, sources=args.sources),
        metrics=args.metrics,
        datasets=args.datasets,
        baseline=args.baseline,
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

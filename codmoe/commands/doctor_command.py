"""Examine data sets before training: codmoe doctor data --json doctor.json

Recognises COD10K-v3, CAMO, CHAMELEON, NC4K, TrainDataset + TestDataset and plain pairs of folders.
Exit code 1 if there is an error, 0 with warnings alone.
"""

from codmoe.commands.options import QUIET, option, whole

OPTIONS = (
    option("root", metavar="ROOT", nargs="?", help="folder of one data set or of several"),
    option("--json", metavar="FILE", help="write every finding with all its paths"),
    option(
        "--images", "--image-dir", dest="image_dir", help="with --masks: folders, also below ROOT"
    ),
    option("--masks", "--mask-dir", dest="mask_dir"),
    option("--waive", nargs="+", default=[], metavar="NAME", help="images that may be in two sets"),
    option("--workers", type=whole(most=1024), help="processes; all cores by default"),
    QUIET,
)


def run(args) -> int:
    from codmoe.datasets.doctor.diagnosis import examine, print_report
    from codmoe.files import save_json

    if not args.root and not args.image_dir:
        raise ValueError("nothing to look at; give ROOT, or --images and --masks")
    report = examine(
        args.root or ".",
        image_dir=args.image_dir,
        mask_dir=args.mask_dir,
        waived=args.waive,
        workers=args.workers,
    )
    print_report(report)
    if args.json:
        print(f"json: {save_json(args.json, report.payload())}")
    return 1 if report.errors else 0

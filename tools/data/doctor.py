"""Examine data sets before training: python tools/data/doctor.py data --json doctor.json

Recognises COD10K-v3, CAMO, CHAMELEON, NC4K, TrainDataset + TestDataset and plain pairs of folders.
Exit code 1 if there is an error, 0 with warnings alone.
"""

from codmoe.cli import main, option

OPTIONS = (
    option("root", metavar="ROOT", help="folder of one data set or of several"),
    option("--json", metavar="FILE", help="write every finding with all its paths"),
    option("--image-dir", help="with --mask-dir: folders below ROOT of other names"),
    option("--mask-dir"),
    option("--workers", type=int, help="processes; all cores by default"),
)


def run(args) -> int:
    from codmoe.datasets.doctor.diagnosis import examine, print_report
    from codmoe.files import save_json

    report = examine(
        args.root, image_dir=args.image_dir, mask_dir=args.mask_dir, workers=args.workers
    )
    print_report(report)
    if args.json:
        print(f"json: {save_json(args.json, report.payload())}")
    return 1 if report.errors else 0


if __name__ == "__main__":
    main(run, *OPTIONS, description=__doc__)

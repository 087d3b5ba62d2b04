"""Score saved maps: codmoe eval --pred maps/CAMO --gt CAMO/GT --json camo.json"""

from codmoe.commands.options import QUIET, option, whole

OPTIONS = (
    option("--pred", nargs="+", required=True, help="folder(s) of maps, 8 or 16 bits"),
    option("--gt", nargs="+", required=True, help="folder of masks for each of them"),
    option("--json", help="result file, for codmoe compare"),
    option("--method", help="its name in tables; by default the folder's"),
    option("--datasets", nargs="+", help="names in tables; by default the folders'"),
    option("--resize", action="store_true", help="bring maps to their masks' size, bilinear"),
    option(
        "--extra", nargs="+", default=[], help="CM CCM MSIoU MSIoU_curve SIMAE SIFm HCE, or all"
    ),
    option("--images", nargs="+", help="folder(s) of the images, which CCM reads"),
    option("--device", default="cpu", help="cpu (default) or cuda"),
    option("--workers", type=whole(most=1024), help="threads; by default one a core"),
    option(
        "--backend",
        choices=("torch", "pysodmetrics"),
        default="torch",
        help="pysodmetrics: the field's measures by PySODMetrics itself, slower",
    ),
    QUIET,
)


def run(args) -> None:
    from codmoe.evaluation.score_maps import score_folders

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
        extra=args.extra,
        images=args.images,
    )

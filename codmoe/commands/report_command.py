"""Make the report of a run again: codmoe report work_dirs/stages"""

from codmoe.commands.options import QUIET, option

OPTIONS = (
    option("work_dir", help="--work-dir of codmoe stages"),
    option("--out", help="HTML file; WORK_DIR/report.html by default"),
    QUIET,
)


def run(args) -> None:
    from codmoe.visualization.report import write_report

    print(f"report: {write_report(args.work_dir, args.out)}")

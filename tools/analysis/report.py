"""Make the report of a run again: python tools/analysis/report.py work_dirs/stages"""

from codmoe.cli import main, option

OPTIONS = (
    option("work_dir", help="--work-dir of tools/run_stages.py"),
    option("--out", help="HTML file; WORK_DIR/report.html by default"),
)


def run(args) -> None:
    from codmoe.visualization.report import write_report

    print(f"report: {write_report(args.work_dir, args.out)}")


if __name__ == "__main__":
    main(run, *OPTIONS, description=__doc__)

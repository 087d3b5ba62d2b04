"""One HTML page about a run of all stages."""

from codmoe.visualization.report.page import write_report

__all__ = ["write_report"]

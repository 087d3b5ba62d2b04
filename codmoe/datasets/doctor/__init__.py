"""The data doctor: examines data sets before a GPU-hour is spent on them."""

from codmoe.datasets.doctor.checks import Finding
from codmoe.datasets.doctor.diagnosis import Report, examine, print_report

__all__ = ["Finding", "Report", "examine", "print_report"]

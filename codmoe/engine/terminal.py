"""Shortens a run's log for the terminal to this project's own lines; the log file holds all."""

from __future__ import annotations

import logging
import os
import sys

from mmengine.logging import MMLogger

from codmoe.messages import is_quiet, speaks

NOISE = ('"FileClient"', '"HardDiskBackend"', "Please make sure that the mlflow server")
"""Beginnings of mmengine's warnings of which the user can and need do nothing."""
WIDTH = 140
"""Characters of a line of progress, at most."""


def settle_terminal(logger: MMLogger | None = None) -> None:
    """Has a logger's handler for the terminal show what is meant for people, in their colours; by
    default that of the logger for what is said before there is a Runner.
    """
    for handler in (logger or MMLogger.get_current_instance()).handlers:
        if type(handler) is logging.StreamHandler:
            # mmengine's default logger may be of an earlier command, whose output is closed.
            handler.stream = sys.stderr if is_quiet() else sys.stdout
            if is_quiet():
                handler.setLevel(max(handler.level, logging.WARNING))
            if not speaks():
                handler.setLevel(logging.ERROR)
            handler.addFilter(_for_people)
            handler.setFormatter(TerminalFormatter(colour=_shows_colours(handler.stream)))


class TerminalFormatter(logging.Formatter):
    """The time of day and the message; a warning says that it is one.

    Args:
        colour: Warnings in yellow, and lines with ``extra=dict(emphasis=True)`` in bold.
    """

    def __init__(self, *, colour: bool):
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        time, _, message = text.partition(" ")
        style = ""
        if record.levelno >= logging.WARNING:
            text, style = f"{time} {record.levelname.lower()}: {message}", "33"
        elif getattr(record, "emphasis", False):
            style = "1"
        return f"\x1b[{style}m{text}\x1b[0m" if style and self.colour else text


def _shows_colours(stream) -> bool:
    """Whether text is read by people who want colours (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and hasattr(stream, "isatty") and stream.isatty()


def _for_people(record: logging.LogRecord) -> bool:
    """Keeps back what mmengine says of its own parts, and what is marked by
    ``extra=dict(terminal=False)``.
    """
    # Not by the record's own place: that of whatever comes by way of `print_log` is mmengine's.
    frame = sys._getframe()
    while frame.f_back and _module(frame).startswith(("logging", "mmengine.logging", __name__)):
        frame = frame.f_back
    module = _module(frame)
    if record.levelno >= logging.WARNING:
        return not (module.startswith("mmengine") and record.getMessage().startswith(NOISE))
    return getattr(record, "terminal", True) and not module.startswith("mmengine")


def _module(frame) -> str:
    return str(frame.f_globals.get("__name__"))

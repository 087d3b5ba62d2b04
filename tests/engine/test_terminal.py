"""What of the log a terminal shows, and in which colours."""

import io
import logging

import pytest
from mmengine.logging import MMLogger, print_log

from codmoe.engine.terminal import TerminalFormatter, settle_terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """``terminal()``: a logger and the terminal that it writes to."""
    for name in ("NO_COLOR", "CODMOE_QUIET"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def make():
        with monkeypatch.context() as patch:  # pytest puts its own there between fixture and test
            patch.setattr("sys.stdout", stream)
            logger = MMLogger(f"terminal{id(stream)}")
            settle_terminal(logger)
        return logger, stream

    return make


def of_mmengine(call, *arguments):
    """Calls from a module of mmengine's."""
    scope = dict(__name__="mmengine.runner.loops", call=call, arguments=arguments)
    exec("call(*arguments)", scope)


def test_mmengine_speaks_of_its_parts_in_the_file_alone(terminal):
    logger, stream = terminal()
    of_mmengine(logger.info, "Hooks will be executed")
    of_mmengine(print_log, "Checkpoints will be saved", logger)
    logger.info("wrote weights", extra=dict(terminal=False))
    assert stream.getvalue() == ""
    of_mmengine(logger.warning, "Resumed iteration number")
    print_log("ours", logger)
    warned, said = stream.getvalue().splitlines()
    assert "warning: Resumed iteration number" in warned and said.endswith(" ours")


def test_its_deprecations_are_not_the_users(terminal):
    logger, stream = terminal()
    of_mmengine(logger.warning, '"FileClient" will be deprecated in future.')
    assert stream.getvalue() == ""
    of_mmengine(logger.warning, "Could not log metric")
    assert "warning: Could not log metric" in stream.getvalue()


def test_colours_on_a_terminal_alone(terminal, monkeypatch):
    logger, stream = terminal()
    logger.info("plain")
    logger.info("best", extra=dict(emphasis=True))
    logger.warning("careful")
    plain, best, careful = stream.getvalue().splitlines()
    assert "\x1b" not in plain and best.startswith("\x1b[1m") and careful.startswith("\x1b[33m")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            stream.truncate(0)
            logger, _ = terminal()
            logger.warning("careful")
            assert "\x1b" not in stream.getvalue()
            assert "warning: careful" in stream.getvalue()  # the word says it, too


def test_quiet(terminal, monkeypatch, capsys):
    monkeypatch.setenv("CODMOE_QUIET", "1")
    logger, stream = terminal()
    logger.info("nothing")
    logger.warning("heard")
    assert stream.getvalue() == ""
    said = capsys.readouterr().err
    assert said.endswith("warning: heard\n") and "nothing" not in said


def test_a_block_of_lines_keeps_its_lines():
    record = logging.LogRecord("a", logging.INFO, "", 0, "one\n  two %s", ("three",), None)
    text = TerminalFormatter(colour=False).format(record)
    assert text.partition(" ")[2] == "one\n  two three"

"""Tables on the terminal, in log files and in Markdown, from the same cells."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from codmoe.messages import printable


class Bold(str):
    """A cell that stands out: bold on the terminal, between ``**`` in Markdown."""


Row = Sequence[str | Text]


@dataclass
class TextTable:
    """A table for people to read; no text in it is taken for markup.

    Args:
        heads: Titles of the columns.
        rows: Cells of each row, as many as ``heads`` or fewer; None draws a line.
        words: Columns of words, set to the left; -1 is the last. Others hold figures.
        title: Above the table on the terminal.
        notes: Lines below it.
        wrap: Fold long cells on the terminal and draw a line between rows. Otherwise the table is
            as wide as it needs, also in a log file, for which rich assumes 80 columns and would cut
            figures to "0.7…".
    """

    heads: Sequence[str]
    rows: Sequence[Row | None]
    words: Collection[int] = (0,)
    title: str | None = None
    notes: Sequence[str] = ()
    wrap: bool = False

    def print(self, console: Console | None = None) -> None:
        """Prints the table, on standard output by default."""
        table = self._rich()
        if console is None:
            console = Console()
            if not self.wrap:
                wide = console.options.update(width=10_000)
                console.width = max(console.width, console.measure(table, options=wide).maximum)
            elif not console.is_terminal:
                console.width = 120
        console.print(table)
        for note in self.notes:
            console.print(printable(note), style="dim", markup=False, highlight=False)

    def text(self) -> str:
        """The table as :meth:`print` writes it, without colours, such as for a log."""
        text = io.StringIO()
        self.print(Console(file=text, width=10_000))
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

    def markdown(self) -> str:
        """The table in Markdown with its notes as a list."""
        left = self._left()
        rule = "|".join(" :--- " if i in left else " ---: " for i in range(len(self.heads)))
        rows = [f"| {' | '.join(map(_marked, r))} |" for r in (self.heads, *self.rows) if r]
        notes = ["", *(f"- {markdown_text(note)}" for note in self.notes)] if self.notes else []
        return "\n".join([rows[0], f"|{rule}|", *rows[1:], *notes]) + "\n"

    def _left(self) -> set[int]:
        return {index % len(self.heads) for index in self.words}

    def _rich(self) -> Table:
        title = self.title and Text(printable(self.title), style="table.title")
        table = Table(title=title, title_justify="left", show_lines=self.wrap)
        for index, head in enumerate(self.heads):
            table.add_column(
                Text(printable(head)),
                justify="left" if index in self._left() else "right",
                no_wrap=not self.wrap,
                overflow="fold" if self.wrap else "ellipsis",
            )
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*map(_styled, row))
        return table


def grouped(rows: Sequence[Row]) -> list[Row | None]:
    """The rows with a line between those whose first cells differ."""
    result: list[Row | None] = list(rows[:1])
    for before, row in pairwise(rows):
        result += [row] if row[0] == before[0] else [None, row]
    return result


def _styled(cell: str | Text) -> Text:
    if isinstance(cell, Text):
        return cell
    return Text(printable(cell), "bold" if isinstance(cell, Bold) else "")


def markdown_text(text: str) -> str:
    """A text as Markdown shows it: no cell, link, tag, emphasis or task comes of a name.

    Underscores stay: within words they mean nothing; so do brackets without an address.
    """
    return re.sub(_MARKDOWN, r"\\\g<0>", printable(text))


_MARKDOWN = re.compile(r"[\\`*|]|<(?=[\w/!?])|\](?=[(\[:])|^[>#]|^\[(?=[ xX]\])")


def _marked(cell: str | Text) -> str:
    text = markdown_text(str(cell))
    return f"**{text}**" if isinstance(cell, Bold) else text

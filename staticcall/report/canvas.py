"""Text that fits a terminal: headings, words that are wrapped and tables of columns, in colour or without.

Libraries that lay out tables take half a millisecond for each row, and a kernel has thousands of keys. So only the
colours, and how wide a character is, are rich's.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from staticcall.errors import printable
from staticcall.model.terminal import Terminal

HEADING = "bold"
NAME = "cyan"
FAINT = "dim"
_GAP = 2
_FEWEST = 8  # columns for a name, however little room there is
_BAR = 20
_LONG = 10_000  # characters, of which nobody reads words; finding these takes the square of a name's length


class Column(NamedTuple):
    """A column of a table: numbers stand to the right and are never folded.

    Where there is no room, names are cut anywhere, and `words` between them.
    """

    title: str = ""
    style: str = ""
    number: bool = False
    words: bool = False


Cell = str | tuple[str, str]  # the text, and a style instead of the column's


class Canvas:
    """What is to be shown, line by line; every text may be a name out of a file, and hold anything."""

    def __init__(self, terminal: Terminal) -> None:
        self.width = terminal.width
        self._terminal = terminal
        self._text = Text()

    def blank(self) -> None:
        """An empty line."""
        self._text.append("\n")

    def heading(self, text: str) -> None:
        """The title of what follows."""
        self.words(text, HEADING, hang=2)

    def words(self, text: str, style: str = "", *, indent: int = 0, hang: int = 0, whole: bool = False) -> None:
        """Text in lines; the first is indented by `indent`, the others by `hang`.

        What is longer than a line is cut; with `whole` the terminal shall do that, so that it can be copied.
        """
        first, later = " " * indent, " " * hang
        for line in self._wrapped(self._known(text.rstrip()), first, later, whole=whole):
            self._text.append(f"{line}\n", style)

    def labelled(self, label: str, style: str, text: str, *, indent: int = 2) -> None:
        """Words that begin with a word in colour."""
        start = len(self._text) + indent
        self.words(f"{label} {text}", indent=indent, hang=indent + 2)
        self._text.stylize(style, start, start + len(label))

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, indent: int = 2) -> None:
        """Rows below their titles; there are none where no column has one."""
        cells = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
        cells = [[(self._known(text), style) for text, style in row] for row in cells]
        titles = [(column.title, HEADING) for column in columns]
        widths = self._widths(columns, [titles, *cells], indent)
        if any(column.title for column in columns):
            self._row(columns, widths, titles, indent)
        for row in cells:
            self._row(columns, widths, row, indent)

    def bar(self, count: int, total: int) -> str:
        """How much of all that is, as a bar of up to 20 columns; nothing where there is little room."""
        length = max(int(count > 0), round(_BAR * count / total)) if self.width >= 70 else 0
        return ("\u2588" if self._terminal.unicode else "#") * length

    def __str__(self) -> str:
        console = Console(
            file=io.StringIO(),
            width=self.width,
            height=1,
            force_terminal=True,
            color_system="standard" if self._terminal.colour else None,
            no_color=not self._terminal.colour,
            legacy_windows=False,
        )
        with console.capture() as capture:
            console.print(self._text, soft_wrap=True, end="")
        return capture.get()

    def _known(self, text: str) -> str:
        """What of a text the terminal shows, so that it takes the room that it seems to."""
        text = printable(text)
        return text if self._terminal.unicode else text.encode("ascii", "backslashreplace").decode()

    def _wrapped(self, text: str, first: str, later: str, *, whole: bool) -> list[str]:
        if len(first) + cell_len(text) <= self.width:
            return [first + text]
        if len(text) > _LONG:
            return [later + part for part in chop_cells(text, self.width - len(later))]
        wide = cell_len(text) != len(text)
        lines = wrap(
            text,
            self.width // 2 if wide else self.width,  # a character is at most two columns wide
            initial_indent=first,
            subsequent_indent=later,
            break_long_words=not whole,
            break_on_hyphens=False,
        )
        return lines or [""]

    def _widths(self, columns: Sequence[Column], rows: Iterable[Sequence[tuple[str, str]]], indent: int) -> list[int]:
        """How wide each column is, so that all of them fit; the widest names give way first."""
        widths = [max(cell_len(text) for text, _ in column) for column in zip(*rows, strict=True)]
        room = self.width - indent - _GAP * (len(columns) - 1)
        names = [n for n, column in enumerate(columns) if not column.number and widths[n] > _FEWEST]
        while (excess := sum(widths) - room) > 0 and names:
            widest = max(names, key=widths.__getitem__)
            second = max((widths[n] for n in names if widths[n] < widths[widest]), default=_FEWEST)
            equals = [n for n in names if widths[n] == widths[widest]]
            for number in equals:
                widths[number] -= min(widths[number] - second, -(-excess // len(equals)))
            names = [n for n in names if widths[n] > _FEWEST]
        return widths

    def _row(
        self, columns: Sequence[Column], widths: Sequence[int], row: Sequence[tuple[str, str]], indent: int
    ) -> None:
        folded = [
            _folded(text, width, words=column.words)
            for (text, _), width, column in zip(row, widths, columns, strict=True)
        ]
        for parts in zip_longest(*folded, fillvalue=""):
            self._text.append(" " * indent)
            last = max((n for n, part in enumerate(parts) if part), default=0)
            for n, (column, width, (_, style), part) in enumerate(zip(columns, widths, row, parts, strict=True)):
                if n > last:
                    break
                space = " " * (width - cell_len(part))
                if column.number:
                    self._text.append(space)
                self._text.append(part, style or column.style)
                if not column.number and n < last:
                    self._text.append(space)
                if n < last:
                    self._text.append(" " * _GAP)
            self._text.append("\n")


def _folded(text: str, width: int, *, words: bool) -> list[str]:
    if text.isascii() and len(text) <= width:
        return [text]
    if words and text.isascii():
        return wrap(text, width, break_on_hyphens=False)
    return chop_cells(text, width) or [""]

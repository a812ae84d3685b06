"""Whether what is said may be in colour, and how wide it may be."""

from __future__ import annotations

import os
from typing import TextIO

from staticcall.model.terminal import Terminal

_COLUMNS, _ROWS = 80, 24
_NARROWEST, _WIDEST = 60, 250
_MOST_DIGITS = 5


def wants_colour(stream: TextIO | None) -> bool:
    """Whether a stream takes colour: a terminal does that is not `dumb`, anything else does not.

    NO_COLOR says no (no-color.org), else FORCE_COLOR says yes (force-color.org), each by any text that is not empty.
    """
    if stream is None or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def terminal_of(stream: TextIO | None) -> Terminal | None:
    """What there is to know of the terminal behind a stream; None where plain text is wanted.

    That is anything that is no terminal, unless FORCE_COLOR says that its reader shows colour, as the logs of most
    CI servers do.
    """
    colour = wants_colour(stream)
    if stream is None or not (colour or stream.isatty()):
        return None
    width = min(max(size_of(stream)[0], _NARROWEST), _WIDEST)
    return Terminal(width, colour, (stream.encoding or "").lower().replace("-", "").startswith("utf"))


def size_of(stream: TextIO) -> tuple[int, int]:
    """The columns and rows of a terminal: what COLUMNS and LINES say, else what it says itself, else 80 and 24."""
    try:
        own = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        own = os.terminal_size((0, 0))
    given = (os.environ.get("COLUMNS", ""), os.environ.get("LINES", ""))
    columns, rows = (
        int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0 for text in given
    )
    return columns or own.columns or _COLUMNS, rows or own.lines or _ROWS

"""How far a long run is, for who waits at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")

# Nobody wants to know before, or more often.
_SECONDS = 1.0
_AGAIN = 0.1
_WIPE = "\r\x1b[K"


class Progress:
    """One line on standard error that says how many of `total` files are done.

    It is there on a terminal only, after a second, and gone when something else is to be said there.
    """

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = total
        self._done = 0
        self._next = time.monotonic() + _SECONDS
        self._shown = False
        self._off = quiet or sys.stderr is None or not sys.stderr.isatty()

    def over(self, results: Iterable[_T], parts: Sequence[Sequence[object]]) -> Iterator[_T]:
        """Pass on what becomes of each part, and count its files."""
        for result, part in zip(results, parts, strict=True):
            self._done += len(part)
            self._show()
            yield result
        self.wipe()

    def wipe(self) -> None:
        """Make room for something else."""
        if self._shown:
            self._write(_WIPE)
            self._shown = False

    def _show(self) -> None:
        now = time.monotonic()
        if not self._off and now >= self._next:
            self._next = now + _AGAIN
            self._shown = True
            self._write(f"{_WIPE}{self._done:,} of {self._total:,} files")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self._off = True

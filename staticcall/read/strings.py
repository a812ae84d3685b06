"""Names out of a string table, no more of them than any file needs."""

from __future__ import annotations

from staticcall.errors import MalformedError
from staticcall.model.symbols import MOST_NAMES


class Strings:
    """A string table that stands at a file offset; `what` is what its strings are, for errors."""

    def __init__(self, data: bytes, offset: int, what: str) -> None:
        self._data = data
        self._offset = offset
        self._what = what
        self._known: dict[int, str] = {}
        self._size = 0

    def at(self, start: int) -> str:
        """The string that starts at a place of the table; raises `MalformedError` where none ends."""
        if not start and not self._data:
            return ""  # an empty table still has the empty string
        name = self._known.get(start)
        if name is not None:
            return name
        end = self._data.find(b"\0", start)
        self._size += end - start
        if end < 0 or self._size > MOST_NAMES:
            raise MalformedError(
                f"{self._what} {'runs past its string table' if end < 0 else 'is longer than any name'}",
                offset=self._offset + start,
                advice="the file is damaged",
            )
        name = self._known[start] = self._data[start:end].decode("utf-8", "backslashreplace")
        return name

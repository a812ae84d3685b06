"""Pieces of bytes, as they come, read like a file from its beginning to its end."""

from __future__ import annotations

from collections.abc import Iterator

from staticcall.errors import MalformedError
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import FEED


class Reader:
    """Reads forward only; holds one piece at a time, and what is asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self.offset = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer where the end is before."""
        parts = []
        wanted = size
        while wanted:
            if self._at == len(self._piece) and not self._next():
                break
            part = self._piece[self._at : self._at + wanted]
            self._at += len(part)
            wanted -= len(part)
            parts.append(part)
        self.offset += size - wanted
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def exactly(self, size: int, what: str) -> bytes:
        """The next `size` bytes of `what`; raises `MalformedError` where there are fewer."""
        data = self.read(size)
        if len(data) < size:
            raise MalformedError(f"ends inside of {what}", offset=self.offset, advice="the file is truncated")
        return data

    def skip(self, size: int) -> int:
        """Pass over so many bytes; gives how many there were."""
        left = size
        while left:
            if self._at == len(self._piece) and not self._next():
                break
            step = min(left, len(self._piece) - self._at)
            self._at += step
            left -= step
        self.offset += size - left
        return size - left

    def skip_zeros(self) -> bytes:
        """Pass over zeros; gives the byte behind them, which was read then, or nothing at the end."""
        while True:
            rest = self._piece[self._at :].lstrip(b"\0")
            self.offset += len(self._piece) - self._at - len(rest)
            if rest:
                self._at = len(self._piece) - len(rest) + 1
                self.offset += 1
                return rest[:1]
            if not self._next():
                return b""

    def _next(self) -> bool:
        self._at = 0
        self._piece = next(self._pieces, b"")
        return bool(self._piece)


def chunks(source: ByteSource, at: int, stop: int) -> Iterator[bytes]:
    """A part of a source as it is, in pieces."""
    while at < stop:
        piece = source.read(at, min(FEED, stop - at))
        at += len(piece)
        yield piece

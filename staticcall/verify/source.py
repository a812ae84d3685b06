"""Positioned reads from the two files, in pieces: a kernel with its debug information is large."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from staticcall.errors import InputError, MalformedError

# Places of interest stand close together (keys, trampolines) or a few hundred bytes apart (sites), so one
# read serves hundreds of them.
_WINDOW = 1 << 18
# Files may have holes: a size that fits in the file may still be none that fits in memory.
_MOST_AT_ONCE = 1 << 31


class Span(NamedTuple):
    """`size` bytes from file offset `offset`."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the first byte behind."""
        return self.offset + self.size


class Source(NamedTuple):
    """An open file; `size` is its size in bytes when it was opened."""

    path: Path
    stream: BinaryIO
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`; raises `MalformedError` where the file has fewer."""
        if size > _MOST_AT_ONCE:
            raise MalformedError(f"{size} bytes wanted at once", path=self.path, offset=offset)
        if offset < 0 or size < 0 or offset + size > self.size:
            raise MalformedError(f"the file ends before the {size} bytes wanted", path=self.path, offset=offset)
        buffer = bytearray(size)
        self.fill(buffer, offset)
        return bytes(buffer)

    def fill(self, buffer: bytearray, offset: int) -> None:
        """Fill the whole buffer from `offset` on; raises `InputError` where that fails."""
        try:
            count = os.preadv(self.stream.fileno(), [buffer], offset)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=self.path, offset=offset) from error
        if count != len(buffer):
            raise InputError("the file became shorter while it was read", path=self.path, offset=offset)

    def snippets(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of each span; cheap when the spans are sorted by offset, correct in any order."""
        found = []
        window, start, stop = b"", 0, 0
        for offset, size in spans:
            if offset < start or offset + size > stop:
                window = self.read(offset, max(size, min(_WINDOW, self.size - offset)))
                start, stop = offset, offset + len(window)
            found.append(window[offset - start : offset - start + size])
        return found


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open a regular file for reading; raises `InputError` for anything else, a pipe would never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError("not a regular file", path=path)
        stream = path.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be opened: {reason}", path=path) from error
    with stream:
        yield Source(path, stream, os.fstat(stream.fileno()).st_size)

"""Access to the bytes of an input file, without mapping it.

A mapped file that another process truncates kills its reader with SIGBUS; a read only comes back short,
and that can be said in a sentence.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from types import TracebackType
from typing import Self

from staticcall.errors import InputError, MalformedError, StrPath, about

_CHUNK = 1 << 20
# A file can have holes, and so be larger than any memory without taking room on the disk.
_MOST_AT_ONCE = 1 << 31
# A file's times are those of the timer's last tick, which is every 10 ms at the slowest (CONFIG_HZ=100).
_TICK_NS = 10_000_000


class FileSource:
    """One open regular file; `read` gives exactly what was asked for or raises `MalformedError`."""

    def __init__(self, path: StrPath) -> None:
        self.path = path
        try:
            # A FIFO would block in open() until somebody writes to it.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(
                f"cannot be opened: {error.strerror}", path=path, advice="check the name and its permissions"
            ) from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"is {kind}", path=path, advice="name a file")
        self._size = status.st_size
        self._stamp = _stamp(status)
        self._fresh = time.time_ns() - status.st_ctime_ns < _TICK_NS

    @property
    def size(self) -> int:
        """The file's size in bytes when it was opened."""
        return self._size

    @property
    def identity(self) -> tuple[int, ...] | None:
        """What is the same as long as the file is; None where it was changed too lately to tell."""
        return None if self._fresh else self._stamp

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        if size > _MOST_AT_ONCE:
            raise MalformedError(
                f"{size} bytes are wanted at once, more than any image has of anything",
                offset=offset,
                advice="its headers are wrong",
            )
        if offset < 0 or size < 0 or offset + size > self._size:
            raise MalformedError(
                f"{size} bytes are expected where the file has {max(self._size - offset, 0)}",
                offset=offset,
                advice="the file is truncated or its headers are wrong",
            )
        return self._read_exactly(offset, size)

    def _read_exactly(self, offset: int, size: int) -> bytes:
        pieces: list[bytes] = []
        while size:
            try:
                piece = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}", path=self.path, offset=offset) from error
            if not piece:
                raise InputError("became shorter while it was read", path=self.path, advice="run again")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def whole(self) -> bytes:
        """The file as it was at one moment; raises `InputError` where it was changed meanwhile."""
        data = self.read(0, self._size)
        # A change within the tick of an earlier one does not show in the times, but in a second look.
        if self._fresh and self.read(0, self._size) != data:
            raise self._changed()
        self.check_unchanged()
        return data

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file was changed since it was opened, or another one has its name.

        The time of the last change of the inode counts as well, since the one of the contents can be set back.
        """
        try:
            now, named = os.fstat(self._descriptor), os.stat(self.path)
        except OSError:
            named = None
        if named is None or _stamp(now) != self._stamp or not os.path.samestat(now, named):
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError("was changed while it was read", path=self.path, advice="run again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # all that was read is here
            os.close(self._descriptor)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_whole(path: StrPath) -> bytes:
    """The content of a regular file at one moment; raises `InputError` where it was changed meanwhile."""
    with about(path), FileSource(path) as source:
        return source.whole()


def sha256_of_bytes(data: bytes | bytearray) -> str:
    """The SHA-256 of bytes in memory, as 64 hex digits."""
    from hashlib import sha256  # noqa: PLC0415 - only asked for with --hash and --edits

    return sha256(data).hexdigest()


def sha256_of(path: StrPath) -> str:
    """The SHA-256 of a regular file's content, as 64 hex digits."""
    from hashlib import sha256  # noqa: PLC0415 - only asked for with --hash and --edits

    digest = sha256()
    with about(path), FileSource(path) as source:
        for offset in range(0, source.size, _CHUNK):
            digest.update(source.read(offset, min(_CHUNK, source.size - offset)))
    return digest.hexdigest()

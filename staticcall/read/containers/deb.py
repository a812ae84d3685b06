"""A package of Debian: an archive of three files, the last of which, data.tar, is compressed and has what is installed.

Sources: deb(5), and tar as the standard library reads it.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from staticcall.abi import archive
from staticcall.errors import MalformedError, StaticcallError, UnsupportedError
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import codec_of, file_pieces, limit_for, limited
from staticcall.read.containers.entry import Entry
from staticcall.read.containers.reader import Reader, chunks

_NUMBER = re.compile(rb"([0-9]+) *")
_DATA = "data.tar"
_READ = 1 << 18
# At the end it asks a few times whether there is more.
_MOST_ENDS = 8
_DAMAGED = "the package is damaged"


class _Part:
    """A part of a source as a source of its own."""

    def __init__(self, source: ByteSource, start: int, size: int) -> None:
        self._source, self._start = source, start
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise MalformedError("ends too early", offset=self._start + self.size, advice=_DAMAGED)
        return self._source.read(self._start + offset, size)

    def whole(self) -> bytes:
        return self.read(0, self.size)

    def check_unchanged(self) -> None:
        self._source.check_unchanged()


def entries(source: ByteSource) -> Iterator[Entry]:
    """All that the package installs, in one pass; each can be read until the next one is asked for.

    Raises `MalformedError` where it is damaged, `UnsupportedError` where its data is compressed in another way.
    """
    data = _data(source)
    head = data.read(0, min(data.size, 512))
    codec = codec_of(head)
    if codec is not None:
        reader = Reader(limited(file_pieces(data, codec), limit_for(source.size, streamed=True)))
    elif head[257:262] == b"ustar":
        reader = Reader(chunks(data, 0, data.size))
    else:
        raise UnsupportedError("has data of an unknown compression", advice="unpack it with dpkg-deb")
    with _as_damage():
        # A stream, of which nothing is kept.
        tar = tarfile.open(mode="r|", fileobj=cast(IO[bytes], _File(reader)), bufsize=_READ)  # noqa: SIM115 - below
    with tar:
        while (info := _next(tar)) is not None:
            if info.isreg() and not info.issparse():
                content = tar.extractfile(info)
                assert content is not None, "it is a regular file"
                yield Entry(info.name, info.size, regular=True, read=_checked(content))
            elif info.issym() or info.islnk():
                yield Entry(info.name, link=info.linkname, hard=info.islnk())
            elif info.issparse():
                yield Entry(info.name)


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _as_damage():
        info = tar.next()
    # Otherwise it remembers all of them.
    tar.members = []  # type: ignore[attr-defined]  # only its stubs lack it
    return info


@contextmanager
def _as_damage() -> Iterator[None]:
    """Make one error of all that tarfile raises about damage: its own, ValueError, RecursionError and others."""
    try:
        yield
    except (StaticcallError, MemoryError):
        raise
    except Exception as error:
        raise MalformedError(f"its data.tar cannot be read: {error}", advice=_DAMAGED) from error


def _checked(content: IO[bytes]) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        with _as_damage():
            return content.read(size)

    return read


class _File:
    """What tarfile reads from. To pass over a file it reads on however far its header says, as if nothing could end."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._ends = 0

    def read(self, size: int) -> bytes:
        data = self._reader.read(size)
        if not data:
            self._ends += 1
            if self._ends > _MOST_ENDS:
                raise MalformedError("ends inside of its data.tar", advice="the package is truncated")
        return data


def _data(source: ByteSource) -> _Part:
    """The last of the three files, whatever its compression."""
    at = len(archive.MAGIC)
    while at < source.size:
        if at + archive.HEADER_SIZE > source.size:
            raise MalformedError("ends inside of a header", offset=at, advice="the package is truncated")
        header = source.read(at, archive.HEADER_SIZE)
        size = _NUMBER.fullmatch(header[archive.SIZE_FIELD])
        if size is None or not header.endswith(archive.HEADER_END):
            raise MalformedError("has no header where one is expected", offset=at, advice=_DAMAGED)
        place, length = at + archive.HEADER_SIZE, int(size[1])
        if place + length > source.size:
            raise MalformedError("ends inside of a file", offset=at, advice="the package is truncated")
        if header[archive.NAME_FIELD].startswith(_DATA.encode()):
            return _Part(source, place, length)
        at = place + length + length % 2
    raise MalformedError(f"has no {_DATA}", offset=at, advice=_DAMAGED)

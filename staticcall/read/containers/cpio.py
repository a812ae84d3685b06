"""An initramfs: cpio archives one behind the other, each as it is or compressed, with zeros between them.

The kernel reads them all into one file system, so that Debian's has the microcode in front and the rest compressed.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from staticcall.abi import containers as abi
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.container import Codec
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import codec_of, limit_for, limited, pieces_from
from staticcall.read.containers.entry import Entry
from staticcall.read.containers.reader import Reader, chunks

_HEADER_SIZE = 110
_TRAILER = b"TRAILER!!!"
_LONGEST_NAME = 4096
_DAMAGED = "the archive is damaged"


class _Header(NamedTuple):
    """The fields of one header, in their order in the file; numbers of eight hex digits."""

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    size: int
    major: int
    minor: int
    rmajor: int
    rminor: int
    name_size: int
    check: int


def entries(source: ByteSource) -> Iterator[Entry]:
    """All files of all archives, in one pass; each can be read until the next one is asked for.

    Raises `MalformedError` for what the kernel would not read either.
    """
    at, size = 0, source.size
    while at < size:
        head = source.read(at, min(16, size - at))
        zeros = len(head) - len(head.lstrip(b"\0"))
        if zeros:
            at += zeros
            continue
        if head.startswith(abi.CPIO_MAGICS):
            at = yield from _plain(source, at)
        elif (codec := codec_of(head)) is not None:
            packed = _Packed(source, codec, at)
            yield from _all_archives(Reader(limited(packed.pieces(), limit_for(size, streamed=True))))
            at = packed.end
        elif head.startswith(abi.CPIO_OTHERS):
            raise UnsupportedError(
                "is a cpio archive of an old format", offset=at, advice="make it with `cpio -H newc`"
            )
        else:
            raise MalformedError("has neither an archive nor zeros where one ends", offset=at, advice=_DAMAGED)


class _Packed:
    """A compressed part, which ends where `end` says after its last piece was taken."""

    def __init__(self, source: ByteSource, codec: Codec, at: int) -> None:
        self.end = at
        self._stream = pieces_from(source, codec, at)

    def pieces(self) -> Iterator[bytes]:
        self.end = yield from self._stream


def _plain(source: ByteSource, at: int) -> Generator[Entry, None, int]:
    """One archive that is not compressed; returns the offset behind it."""
    reader = Reader(chunks(source, at, source.size))
    yield from _archive(reader, at)
    return at + reader.offset


def _all_archives(reader: Reader) -> Iterator[Entry]:
    """What was compressed as one: archives with zeros between them."""
    while first := reader.skip_zeros():
        yield from _archive(reader, 0, first)


def _archive(reader: Reader, base: int, first: bytes = b"") -> Iterator[Entry]:
    """One archive up to its trailer; `first` are bytes of it that were read, `base` the offset where it begins."""
    start = reader.offset - len(first)
    while True:
        header, name = _header(reader, base, first)
        first = b""
        # Names are filled up to four bytes with the header, contents on their own.
        reader.skip(-(_HEADER_SIZE + header.name_size) % 4)
        if name == _TRAILER:
            reader.skip(-(reader.offset - start) % 4)
            return
        behind = reader.offset + header.size
        if stat.S_ISLNK(header.mode) and header.size <= _LONGEST_NAME:
            target = _text(reader.exactly(header.size, "a link of its cpio archive"))
            yield Entry(_text(name), link=target)
        else:
            regular = stat.S_ISREG(header.mode)
            same = (header.major, header.minor, header.ino) if header.nlink > 1 else None
            yield Entry(_text(name), header.size, regular, same=same, read=_content(reader, behind))
        left = behind - reader.offset
        if reader.skip(left) < left:
            raise MalformedError("ends inside of a file of its cpio archive", advice="the file is truncated")
        reader.skip(-header.size % 4)


def _content(reader: Reader, behind: int) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        return reader.read(min(size, behind - reader.offset))

    return read


def _header(reader: Reader, base: int, first: bytes) -> tuple[_Header, bytes]:
    offset = base + reader.offset - len(first)
    data = first + reader.exactly(_HEADER_SIZE - len(first), "a header of its cpio archive")
    if not data.startswith(abi.CPIO_MAGICS):
        raise MalformedError("has no cpio header where one is expected", offset=offset, advice=_DAMAGED)
    digits = data[6:]
    try:
        fields = bytes.fromhex(digits.decode("ascii"))
    except ValueError as error:
        raise MalformedError("has a cpio header that is no number", offset=offset, advice=_DAMAGED) from error
    if len(fields) != len(digits) // 2:
        raise MalformedError("has a cpio header that is no number", offset=offset, advice=_DAMAGED)
    header = _Header(*(int.from_bytes(fields[place : place + 4], "big") for place in range(0, 52, 4)))
    if not 1 <= header.name_size <= _LONGEST_NAME:
        raise MalformedError(f"has a name of {header.name_size} bytes", offset=offset, advice=_DAMAGED)
    return header, reader.exactly(header.name_size, "a name of its cpio archive").rstrip(b"\0")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")

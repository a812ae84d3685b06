"""Files of lzop: a header, then blocks with sizes and checksums around what LZO made of them."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import lzallright

from staticcall.abi import containers as abi
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.container import Codec
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import Stream, damaged

# The program's own limit.
_LARGEST_BLOCK = 64 << 20
_METHODS = (1, 2, 3)


class Header(NamedTuple):
    """The header of one file: its size, and the flags that say which checksums there are."""

    size: int
    flags: int


def stream(source: ByteSource, at: int, feed: int) -> Stream:  # noqa: ARG001 - as all of them; its blocks have sizes
    """One file, to the block of size zero that ends it."""
    header = read_header(source, at)
    at += header.size
    decoder = lzallright.LZOCompressor()
    while True:
        plain = _number(source, at)
        if not plain:
            return at + 4
        packed = _number(source, at + 4)
        if max(plain, packed) > _LARGEST_BLOCK or packed > plain or not packed:
            raise damaged(Codec.LZO, "a block has a size that none can have", at)
        start = at
        at += 8
        sums = [_number(source, at + 4 * index) for index in range(_sums(header.flags, stored=packed == plain))]
        at += 4 * len(sums)
        if at + packed > source.size:
            raise _cut(source)
        data = source.read(at, packed)
        if packed < plain:
            try:
                data = decoder.decompress(data, plain)
            except lzallright.LZOError as error:
                raise damaged(Codec.LZO, error, start) from error
        if len(data) != plain or not _right(data, sums, header.flags):
            raise damaged(Codec.LZO, "a block's size or checksum is wrong", start)
        yield data
        at += packed


def read_header(source: ByteSource, at: int) -> Header:
    """The header at an offset; raises `MalformedError` and `UnsupportedError`."""
    place = at + len(abi.LZOP_MAGIC)
    fixed = _bytes(source, place, 6)
    version, _, needed = struct.unpack(">HHH", fixed)
    if version < 0x0940 or needed > 0x1040:
        raise UnsupportedError(f"is of lzop's format {version:#x}", offset=place, advice="compress it with lzop 1")
    method, _, flags = struct.unpack(">BBI", _bytes(source, place + 6, 6))
    if method not in _METHODS or flags & abi.LZOP_FILTER or flags & abi.LZOP_EXTRA_FIELD:
        raise UnsupportedError("has lzop's filters or extra fields", offset=place, advice="compress it without")
    # Mode and two halves of the time stand before the name's length.
    name = place + 12 + 12
    size = name + 1 + _bytes(source, name, 1)[0] + 4 - at
    whole = _bytes(source, at + len(abi.LZOP_MAGIC), size - len(abi.LZOP_MAGIC))
    checksum = zlib.crc32 if flags & abi.LZOP_CRC32_HEADER else zlib.adler32
    if checksum(whole[:-4]) != int.from_bytes(whole[-4:], "big"):
        raise damaged(Codec.LZO, "the header's checksum is wrong", at)
    return Header(size, flags)


def _sums(flags: int, *, stored: bool) -> int:
    """How many checksums stand before a block; a stored one has none of its compressed form."""
    plain = bool(flags & abi.LZOP_ADLER32_PLAIN) + bool(flags & abi.LZOP_CRC32_PLAIN)
    packed = bool(flags & abi.LZOP_ADLER32_PACKED) + bool(flags & abi.LZOP_CRC32_PACKED)
    return plain + (0 if stored else packed)


def _right(data: bytes, sums: list[int], flags: int) -> bool:
    """Whether the checksums of a block's content are what stands before it."""
    wanted = [zlib.adler32] if flags & abi.LZOP_ADLER32_PLAIN else []
    wanted += [zlib.crc32] if flags & abi.LZOP_CRC32_PLAIN else []
    return all(checksum(data) == value for checksum, value in zip(wanted, sums, strict=False))


def _number(source: ByteSource, at: int) -> int:
    return int.from_bytes(_bytes(source, at, 4), "big")


def _bytes(source: ByteSource, at: int, size: int) -> bytes:
    if at + size > source.size:
        raise _cut(source)
    return source.read(at, size)


def _cut(source: ByteSource) -> MalformedError:
    return MalformedError("ends inside of its lzo data", offset=source.size, advice="the file is truncated")

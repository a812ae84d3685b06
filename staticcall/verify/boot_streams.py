"""What the compressed payload of a boot image holds, unpacked as the kernel's own decompressors do it.

A payload is one stream and, but for gzip, nothing is said about where it ends; so each of these gives the content and
the number of bytes that belong to it. Nothing unpacks to more than is claimed.

Sources: lib/decompress_*.c of Linux; lz4's doc/lz4_Frame_format.md for the legacy format; lzop's file format, as
lib/decompress_unlzo.c reads it.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple, Protocol

from staticcall.errors import VerificationError

_LITTLE, _BIG = Struct("<I"), Struct(">I")
# Text, and a name.
_GZIP_KNOWN: Final = 0x1 | 0x8
# Where an .xz stream names its check; of these a kernel has none and CRC-32, which are 0 and 1.
_XZ_CHECK_AT: Final = 7
_LZ4_BLOCK: Final = 8 << 20
_LZO_BLOCK: Final = 256 << 10
_LZO_HEADER: Final = Struct(">9sHHHBBIIII")
_LZO_FILTER: Final = 0x800
_LZ4_MAGIC: Final = b"\x02\x21\x4c\x18"
_MOST_WINDOW: Final = 1 << 27
# Real kernels shrink to a fifth.
_ALWAYS: Final = 256 << 20
_MOST_RATIO: Final = 64
# Four bytes can be 128 KiB.
_ZSTD_FEED: Final = 4 << 10


class Content(NamedTuple):
    """What a stream unpacks to, and how many bytes the stream has."""

    data: bytes
    packed: int


class _Stream(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def unpack_stream(packed: bytes, size: int) -> Content:
    """Unpack a payload that is to have `size` bytes; raises `VerificationError` where it does not have them."""
    unpack = next((_CODECS[magic] for magic in _CODECS if packed.startswith(magic)), None)
    if unpack is None:
        raise VerificationError(f"the payload begins with {packed[:4].hex()}, which is no known compression")
    if size > max(_ALWAYS, _MOST_RATIO * len(packed)):
        raise VerificationError(f"the payload of {len(packed)} bytes claims to unpack to {size}, which no kernel does")
    try:
        content = unpack(packed, size)
    except VerificationError:
        raise
    except Exception as error:  # each library has errors of its own
        raise VerificationError(f"the payload does not unpack: {error}") from error
    if len(content.data) != size:
        raise VerificationError(f"the payload unpacks to {len(content.data)} bytes and claims {size}")
    return content


def _by_stream(make: Callable[[], _Stream]) -> Callable[[bytes, int], Content]:
    def unpack(packed: bytes, size: int) -> Content:
        stream = make()
        data = stream.decompress(packed, size + 1)
        if len(data) == size and not stream.eof:
            data += stream.decompress(b"", 1)  # the end may still have to be read
        if not stream.eof:
            raise VerificationError("the payload does not end where it claims to")
        return Content(data, len(packed) - len(stream.unused_data))

    return unpack


def _gzip(packed: bytes, size: int) -> Content:
    if packed[3] & ~_GZIP_KNOWN:
        raise VerificationError("the header of the payload has a part that the kernel does not pass over")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    data = stream.decompress(packed, size + 1)
    if not stream.eof:
        raise VerificationError("the payload does not end where it claims to")
    return Content(data, len(packed) - len(stream.unused_data))


def _xz(packed: bytes, size: int) -> Content:
    if packed[_XZ_CHECK_AT] > 1:
        raise VerificationError("the payload has a check that the kernel does not know")
    return _by_stream(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))(packed, size)


def _zstd(packed: bytes, size: int) -> Content:
    import zstandard  # noqa: PLC0415 - a library of seldom use

    stream = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj()
    data = bytearray()
    for start in range(0, len(packed), _ZSTD_FEED):
        piece = packed[start : start + _ZSTD_FEED]
        data += stream.decompress(piece)
        if stream.eof:
            return Content(bytes(data), start + len(piece) - len(stream.unused_data))
        if len(data) > size:
            break
    raise VerificationError("the payload does not end where it claims to")


def _lz4(packed: bytes, size: int) -> Content:
    import lz4.block  # noqa: PLC0415 - a library of seldom use

    pieces: list[bytes] = []
    left, at = size, len(_LZ4_MAGIC)
    while left > 0:
        (length,) = _LITTLE.unpack_from(packed, at)
        block = packed[at + _LITTLE.size : at + _LITTLE.size + length]
        if not length or len(block) != length:
            raise VerificationError("the payload does not end where it claims to")
        wanted = min(left, _LZ4_BLOCK)
        pieces.append(lz4.block.decompress(block, uncompressed_size=wanted))
        if len(pieces[-1]) != wanted:
            raise VerificationError("a block of the payload is not as long as the kernel expects")
        left -= wanted
        at += _LITTLE.size + length
    if at != len(packed):
        raise VerificationError("something stands behind the payload, which kernels before 5.14 take for a block")
    return Content(b"".join(pieces), at)


def _lzo(packed: bytes, size: int) -> Content:
    import lzallright  # noqa: PLC0415 - a library of seldom use

    flags = _LZO_HEADER.unpack_from(packed)[6]
    if flags & _LZO_FILTER:
        raise VerificationError("the payload is filtered, which no kernel undoes")
    name_at = _LZO_HEADER.size
    at = name_at + 1 + packed[name_at] + _BIG.size
    pieces: list[bytes] = []
    left = size
    while True:
        (unpacked,) = _BIG.unpack_from(packed, at)
        at += _BIG.size
        if not unpacked:
            return Content(b"".join(pieces), at)
        (length,) = _BIG.unpack_from(packed, at)
        # One checksum, which the kernel passes over.
        block = packed[at + 2 * _BIG.size : at + 2 * _BIG.size + length]
        if unpacked > min(left, _LZO_BLOCK) or not 0 < length <= unpacked or len(block) != length:
            raise VerificationError("a block of the payload has a size that the kernel rejects")
        pieces.append(block if length == unpacked else lzallright.LZOCompressor().decompress(block, unpacked))
        if len(pieces[-1]) != unpacked:
            raise VerificationError("a block of the payload is not as long as it says")
        left -= unpacked
        at += 2 * _BIG.size + length


_CODECS: Final[dict[bytes, Callable[[bytes, int], Content]]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    _LZ4_MAGIC: _lz4,
    b"BZh": _by_stream(bz2.BZ2Decompressor),
    b"\x5d\0\0": _by_stream(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE)),
    b"\x89LZO\0\r\n\x1a\n": _lzo,
}

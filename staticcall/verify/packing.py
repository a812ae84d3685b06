"""What a compressed file asks of who unpacks it: a patched one must not ask for more than the original did.

The library that unpacks a file here takes more than a kernel, which has no CRC-64, few filters, and takes the end of
the first stream for the end of all. So a file with the right content can still be one that is not loaded.

Sources: kernel/module/decompress.c, lib/xz/ of Linux; the .xz file format 1.2, sections 2.1.1 and 3.1; RFC 1952
section 2.3; RFC 8878 section 3.1.1.1.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from staticcall.errors import VerificationError
from staticcall.model.container import Codec

# Every reader of .xz knows no check and CRC-32, and every filter chain ends with this one.
_XZ_CHECKS: Final = (0, 1)
_LZMA2: Final = 0x21
# Kernels pass over the name in the header of a .gz, and take anything else in it for data.
_GZIP_FIELDS: Final = {2: "checksum", 4: "field of extras", 16: "comment"}
_MOST_WINDOW: Final = 1 << 27
_FEED: Final = 1 << 14


class _Packing(NamedTuple):
    """What not every reader takes, in words; and how much memory is wanted to look back, in bytes."""

    wants: tuple[str, ...]
    memory: int = 0


def check_packing(codec: Codec, before: bytes, after: bytes, size: int) -> tuple[str, ...]:
    """Compare how two files are compressed that were unpacked already; `size` is that of the second one's content.

    Raises `VerificationError` where the second one may not be read by what reads the first. Returns what to remark.
    """
    if codec not in _READERS:
        return ()
    old, new = _packing(codec, before), _packing(codec, after)
    wants = [want for want in new.wants if want not in old.wants]
    if _has_more(codec, after) and not _has_more(codec, before):
        wants.append("more than one stream")
    if wants:
        raise VerificationError(
            f"is packed with {' and '.join(wants)}, which kernels do not read and the original does not have",
            advice="pack it as the original is",
        )
    if new.memory > max(old.memory, size):
        return (f"unpacking asks for {new.memory:,} bytes, and of the original for {old.memory:,}",)
    return ()


def _packing(codec: Codec, data: bytes) -> _Packing:
    try:
        return _READERS[codec](data)
    except IndexError as error:
        raise VerificationError(f"ends inside of its {codec.value} header") from error


def _gzip(data: bytes) -> _Packing:
    return _Packing(tuple(f"a {name} in its header" for bit, name in _GZIP_FIELDS.items() if data[3] & bit))


def _xz(data: bytes) -> _Packing:
    check = data[7] & 0xF
    wants = [] if check in _XZ_CHECKS else [f"the check {check}"]
    if not data[12]:
        return _Packing(tuple(wants))  # an empty file has no block
    at, memory = 14, 0
    for _ in range((data[13] >> 6 & 1) + (data[13] >> 7)):
        _, at = _number(data, at)
    for _ in range((data[13] & 3) + 1):
        kind, at = _number(data, at)
        size, at = _number(data, at)
        if kind == _LZMA2:
            memory = (2 | data[at] & 1) << (data[at] // 2 + 11)
        else:
            wants.append(f"the filter {kind:#x}")
        at += size
    return _Packing(tuple(wants), memory)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A multibyte integer of .xz, and the offset behind it."""
    value = 0
    for i in range(9):
        value |= (data[at + i] & 0x7F) << 7 * i
        if not data[at + i] & 0x80:
            return value, at + i + 1
    raise VerificationError("has a number in its xz header that does not end", offset=at)


def _zstd(data: bytes) -> _Packing:
    if data[4] & 0x20:  # one segment: as much as the content
        return _Packing(())
    return _Packing((), (8 + (data[5] & 7)) << (7 + (data[5] >> 3)))


def _has_more(codec: Codec, data: bytes) -> bool:
    """Whether anything but zeros follows the first stream."""
    decoder = _decoder(codec)
    for at in range(0, len(data), _FEED):
        decoder.decompress(data[at : at + _FEED])
        if decoder.eof:
            return bool(decoder.unused_data.strip(b"\0") or data[at + _FEED :].strip(b"\0"))
    return False


class _Decoder(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes) -> bytes: ...


def _decoder(codec: Codec) -> _Decoder:
    if codec is Codec.XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ)
    if codec is Codec.GZIP:
        return zlib.decompressobj(wbits=31)
    import zstandard  # noqa: PLC0415 - only for this codec

    frames: _Decoder = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj()
    return frames


_READERS: Final[dict[Codec, Callable[[bytes], _Packing]]] = {
    Codec.GZIP: _gzip,
    Codec.XZ: _xz,
    Codec.ZSTD: _zstd,
}

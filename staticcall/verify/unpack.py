"""What a compressed file holds, by the libraries alone: the writer's own reader is not asked.

Sources: lz4's doc/lz4_Frame_format.md, section "Legacy frame"; lzop's lzop.c and kernel lib/decompress_unlzo.c for the
headers and blocks of its files.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import IO, Final

from staticcall.errors import VerificationError
from staticcall.model.container import Codec

_CHUNK: Final = 1 << 20
_WORD: Final = struct.Struct("<I")
_LZ4_LEGACY: Final = 0x184C2102
_LZ4_LEGACY_BLOCK: Final = 8 << 20
_LZOP_MAGIC: Final = b"\x89LZO\0\r\n\x1a\n"
# Flags of an lzop file: which checksums stand with each block, and parts of the header that may be there.
_ADLER_OUT, _ADLER_IN, _EXTRA, _CRC_OUT, _CRC_IN, _FILTER = 0x1, 0x2, 0x40, 0x100, 0x200, 0x800


def unpack(data: bytes, codec: Codec, most: int) -> bytes:
    """Decompress a whole file, which must not hold more than `most` bytes.

    Raises `VerificationError` where it does, or is damaged.
    """
    try:
        unpacked = _DECODERS[codec](data, most)
    except Exception as error:  # each library has its own, and none of them may get through
        raise VerificationError(f"cannot be unpacked again ({codec.value}): {error}") from error
    if len(unpacked) > most:
        raise VerificationError(f"unpacks to more than the {most} bytes that belong there")
    return unpacked


def _xz(data: bytes, most: int) -> bytes:
    # Not by `lzma.open`, which takes no padding: one stream after the other, and zeros in fours behind each.
    pieces: list[bytes] = []
    total = 0
    while data and total <= most:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        pieces.append(decoder.decompress(data, most + 1 - total))
        total += len(pieces[-1])
        if not decoder.eof and total <= most:
            raise ValueError("ends too early")
        data = decoder.unused_data.lstrip(b"\0")
        if (len(decoder.unused_data) - len(data)) % 4:
            raise ValueError("has padding of a size that no .xz file has")
    return b"".join(pieces)


def _lzma(data: bytes, most: int) -> bytes:
    with lzma.open(io.BytesIO(data), format=lzma.FORMAT_ALONE) as stream:
        return stream.read(most + 1)


def _bzip2(data: bytes, most: int) -> bytes:
    with bz2.open(io.BytesIO(data)) as stream:
        return stream.read(most + 1)


def _gzip(data: bytes, most: int) -> bytes:
    # Not by `gzip`: zlib itself, one member after the other.
    pieces: list[bytes] = []
    total = 0
    while data.strip(b"\0") and total <= most:
        decoder = zlib.decompressobj(wbits=31)
        pieces.append(decoder.decompress(data, most + 1 - total))
        total += len(pieces[-1])
        if not decoder.eof and total <= most:
            raise ValueError("ends too early")
        data = decoder.unused_data
    return b"".join(pieces)


def _read(stream: IO[bytes], most: int) -> bytes:
    pieces = []
    while most > 0 and (piece := stream.read(min(_CHUNK, most))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def _zstd(data: bytes, most: int) -> bytes:
    import zstandard  # noqa: PLC0415 - only for this codec

    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as stream:
        return _read(stream, most + 1)


def _lz4(data: bytes, most: int) -> bytes:
    import lz4.block  # noqa: PLC0415 - only for this codec
    import lz4.frame  # noqa: PLC0415 - only for this codec

    if _WORD.unpack_from(data)[0] != _LZ4_LEGACY:
        with lz4.frame.open(io.BytesIO(data)) as stream:
            return _read(stream, most + 1)
    pieces: list[bytes] = []
    at, total = _WORD.size, 0
    while at < len(data) and total <= most:
        (size,) = _WORD.unpack_from(data, at)
        at += _WORD.size
        if size == _LZ4_LEGACY:  # another frame
            continue
        if at + size > len(data):
            raise ValueError("ends too early")
        pieces.append(lz4.block.decompress(data[at : at + size], uncompressed_size=_LZ4_LEGACY_BLOCK))
        at, total = at + size, total + len(pieces[-1])
    return b"".join(pieces)


def _lzo(data: bytes, most: int) -> bytes:
    import lzallright  # noqa: PLC0415 - only for this codec

    if not data.startswith(_LZOP_MAGIC):
        raise ValueError("has no lzop header")
    # Versions of the program, of the library, and the one needed; method, level, flags.
    (version,) = struct.unpack_from(">H", data, 9)
    at = 9 + 2 + 2 + (2 if version >= 0x940 else 0) + 1 + (1 if version >= 0x940 else 0)
    (flags,) = struct.unpack_from(">I", data, at)
    at += 4 + (4 if flags & _FILTER else 0) + 4 + 4 + (4 if version >= 0x940 else 0)
    at += 1 + data[at] + 4
    if flags & _EXTRA:
        raise ValueError("has an extra field")
    pieces: list[bytes] = []
    total = 0
    while total <= most:
        (size,) = struct.unpack_from(">I", data, at)
        if not size:
            break
        (packed,) = struct.unpack_from(">I", data, at + 4)
        at += 8 + 4 * (bool(flags & _ADLER_OUT) + bool(flags & _CRC_OUT))
        if packed < size:
            at += 4 * (bool(flags & _ADLER_IN) + bool(flags & _CRC_IN))
        block = data[at : at + packed]
        piece = block if packed >= size else bytes(lzallright.LZOCompressor.decompress(block, output_size_hint=size))
        if len(piece) != size:
            raise ValueError("has a block of another size than it says")
        pieces.append(piece)
        at, total = at + packed, total + size
    return b"".join(pieces)


_DECODERS: Final[dict[Codec, Callable[[bytes, int], bytes]]] = {
    Codec.GZIP: _gzip,
    Codec.XZ: _xz,
    Codec.ZSTD: _zstd,
    Codec.LZ4: _lz4,
    Codec.BZIP2: _bzip2,
    Codec.LZMA: _lzma,
    Codec.LZO: _lzo,
}

"""Data is compressed as something else was before, by what was noted of that: same format, same settings.

The same data and settings give the same bytes, today and tomorrow, with the same libraries: nothing of the present goes
in, and one thread does it. What is to be small takes the strongest search that the format has, and asks its reader
for no more memory than before: the kernel's own decompressors have limits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TypeAlias

from staticcall.abi import containers as abi
from staticcall.errors import UnsupportedError
from staticcall.model.container import Codec, Compressed

_Settings: TypeAlias = dict[str, int | bytes | str]
_NEEDLESS = "give an output that is not compressed"
# The levels with which distributions compress what is read more often than written.
_ZSTD_LEVEL, _ZSTD_STRONGEST = 19, 22
_LZ4_LEVEL, _LZ4_STRONGEST = 9, 12
_XZ_PRESET, _XZ_STRONGEST = 6, 9
_GZIP_LEVELS = {2: 9, 4: 1}
_GZIP_LEVEL = 6
# Blocks of two sizes, of which either may be the better one.
_GZIP_STRONGEST = ((9, 8), (9, 9))
_SMALLEST_WINDOW, _LARGEST_WINDOW = 10, 27
_SMALLEST_DICTIONARY = 1 << 12
# That of `xz -9`.
_COMMON_DICTIONARY = 64 << 20


def compress(data: bytes, compressed: Compressed, *, limit: int | None = None) -> bytes:
    """Compress data as `compressed` says that something was compressed.

    `limit` is how many bytes there are for the result: then it is made as small as this format can make it, which
    takes longer, and is returned even if it is larger still. Raises `UnsupportedError` for settings that nothing here
    can give again.
    """
    settings = dict(compressed.settings)
    if compressed.codec is Codec.GZIP:
        return _gzip(data, settings, small=limit is not None)
    if compressed.codec is Codec.XZ:
        return _xz(data, compressed.settings, small=limit is not None)
    if compressed.codec is Codec.ZSTD:
        return _zstd(data, settings, small=limit is not None)
    if compressed.codec is Codec.LZ4:
        return _lz4(data, settings, small=limit is not None)
    if compressed.codec is Codec.BZIP2:
        return _bzip2(data, settings, small=limit is not None)
    if compressed.codec is Codec.LZMA:
        return _lzma(data, settings, small=limit is not None)
    return _lzo(data, settings)


def _number(settings: _Settings, name: str, default: int = 0) -> int:
    value = settings.get(name, default)
    assert isinstance(value, int), "settings of this name are numbers"
    return value


def _header(settings: _Settings) -> bytes:
    value = settings["header"]
    assert isinstance(value, bytes), "it is as it was in the file"
    return value


def _gzip(data: bytes, settings: _Settings, *, small: bool) -> bytes:
    """The header as it was, name and time included; its one byte about the level says which it was."""
    header = _header(settings)
    levels = _GZIP_STRONGEST if small else ((_GZIP_LEVELS.get(header[8], _GZIP_LEVEL), zlib.DEF_MEM_LEVEL),)
    body = min((_deflated(data, level, memory) for level, memory in levels), key=len)
    return header + body + zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")


def _deflated(data: bytes, level: int, memory: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, memory)
    return packer.compress(data) + packer.flush()


def _xz(data: bytes, pairs: Iterable[tuple[str, int | bytes | str]], *, small: bool) -> bytes:
    """One stream of one block, with the filters that were there: kernels take no check but CRC-32 and none."""
    import lzma  # noqa: PLC0415 - one codec at a time

    settings = dict(pairs)
    numbers = {"delta": lzma.FILTER_DELTA, "x86": lzma.FILTER_X86, "lzma2": lzma.FILTER_LZMA2}
    arguments = {"delta": "dist", "x86": "start_offset"}
    chain: list[dict[str, int]] = []
    for name, value in pairs:
        if name.startswith("filter-"):
            raise UnsupportedError(f"is compressed with xz's {name}", advice=_NEEDLESS)
        if name == "lzma2":
            chain.append({"id": numbers[name], **_lzma_options(data, settings, name, small=small)})
        elif name in arguments:
            assert isinstance(value, int), "a filter's argument is a number"
            argument = value + (1 if name == "delta" else 0)
            chain.append({"id": numbers[name]} | ({arguments[name]: argument} if argument else {}))
    chain = chain or [{"id": lzma.FILTER_LZMA2, "preset": _XZ_PRESET}]
    try:
        return lzma.compress(data, lzma.FORMAT_XZ, check=_number(settings, "check"), filters=chain)
    except (lzma.LZMAError, ValueError) as error:
        raise UnsupportedError(f"cannot be compressed as it was: {error}", advice=_NEEDLESS) from error


def _lzma(data: bytes, settings: _Settings, *, small: bool) -> bytes:
    import lzma  # noqa: PLC0415 - one codec at a time

    chain = [{"id": lzma.FILTER_LZMA1, **_lzma_options(data, settings, "dictionary", small=small)}]
    try:
        return lzma.compress(data, lzma.FORMAT_ALONE, filters=chain)
    except (lzma.LZMAError, ValueError) as error:
        raise UnsupportedError(f"cannot be compressed as it was: {error}", advice=_NEEDLESS) from error


def _lzma_options(data: bytes, settings: _Settings, name: str, *, small: bool) -> dict[str, int]:
    """The options of LZMA: the dictionary no larger than it was, as its cost is ten times that.

    A large one is also no larger than the data: a header may promise gigabytes.
    """
    import lzma  # noqa: PLC0415 - one codec at a time

    options: dict[str, int] = {key: _number(settings, key) for key in ("lc", "lp", "pb") if key in settings}
    needed = _dictionary_for(len(data))
    options["dict_size"] = min(_number(settings, name), needed if small else max(needed, _COMMON_DICTIONARY))
    options["dict_size"] = max(options["dict_size"], _SMALLEST_DICTIONARY)
    options["preset"] = _XZ_STRONGEST | lzma.PRESET_EXTREME if small else _XZ_PRESET
    return options


def _dictionary_for(size: int) -> int:
    """The smallest dictionary that holds all of the data, of the sizes that xz can say: 2^n and 3 * 2^n."""
    power = max((max(size, _SMALLEST_DICTIONARY) - 1).bit_length(), 12)
    three_quarters = 3 << (power - 2)
    return three_quarters if three_quarters >= size else 1 << power


def _zstd(data: bytes, settings: _Settings, *, small: bool) -> bytes:
    """A frame with a window no larger than it was; where it was one segment, the window was all of the content."""
    import zstandard  # noqa: PLC0415 - one codec at a time

    window = max(_number(settings, "window", 1 << _LARGEST_WINDOW).bit_length() - 1, _SMALLEST_WINDOW)
    if _number(settings, "single_segment"):
        window = _LARGEST_WINDOW
    level = _ZSTD_STRONGEST if small else _ZSTD_LEVEL
    # For a known size the library takes what that needs, and no more.
    known = zstandard.ZstdCompressionParameters.from_level(level, source_size=len(data))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(data),
        window_log=min(window, known.window_log),
        write_content_size=_number(settings, "content_size"),
        write_checksum=_number(settings, "checksum"),
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def _lz4(data: bytes, settings: _Settings, *, small: bool) -> bytes:
    level = _LZ4_STRONGEST if small else _LZ4_LEVEL
    if not _number(settings, "legacy"):
        import lz4.frame  # noqa: PLC0415 - one codec at a time

        frame: bytes = lz4.frame.compress(
            data,
            compression_level=level,
            block_size=_LZ4_BLOCK_SIZES.get(_number(settings, "block_size"), lz4.frame.BLOCKSIZE_MAX4MB),
            block_linked=bool(_number(settings, "block_linked")),
            block_checksum=bool(_number(settings, "block_checksum")),
            content_checksum=bool(_number(settings, "content_checksum")),
            store_size=bool(_number(settings, "content_size")),
        )
        return frame
    import lz4.block  # noqa: PLC0415 - one codec at a time

    pieces = [abi.LZ4_LEGACY_MAGIC]
    for at in range(0, len(data), abi.LZ4_LEGACY_BLOCK):
        part = data[at : at + abi.LZ4_LEGACY_BLOCK]
        block = lz4.block.compress(part, mode="high_compression", compression=level, store_size=False)
        pieces += (len(block).to_bytes(4, "little"), block)
    return b"".join(pieces)


# By the size of a block in bytes; the numbers are the format's own.
_LZ4_BLOCK_SIZES = {1 << 16: 4, 1 << 18: 5, 1 << 20: 6, 1 << 22: 7}


def _bzip2(data: bytes, settings: _Settings, *, small: bool) -> bytes:  # noqa: ARG001 - its level is all it has
    import bz2  # noqa: PLC0415 - one codec at a time

    return bz2.compress(data, _number(settings, "level", 9))


def _lzo(data: bytes, settings: _Settings) -> bytes:
    """The header of lzop as it was, and blocks with the checksums that it promises."""
    from lzallright import LZOCompressor  # noqa: PLC0415 - one codec at a time

    header, size = _header(settings), _number(settings, "block_size") or 1 << 18
    flags = int.from_bytes(header[len(abi.LZOP_MAGIC) + 8 :][:4], "big")
    packer = LZOCompressor()
    pieces = [header]
    for at in range(0, len(data), size):
        part = data[at : at + size]
        packed = packer.compress(part)
        stored = len(packed) >= len(part)
        sums = _lzo_sums(part, flags, abi.LZOP_ADLER32_PLAIN, abi.LZOP_CRC32_PLAIN)
        if not stored:
            sums += _lzo_sums(packed, flags, abi.LZOP_ADLER32_PACKED, abi.LZOP_CRC32_PACKED)
        packed = part if stored else packed
        pieces += (len(part).to_bytes(4, "big"), len(packed).to_bytes(4, "big"), sums, packed)
    pieces.append(bytes(4))
    return b"".join(pieces)


def _lzo_sums(data: bytes, flags: int, adler: int, crc: int) -> bytes:
    """The checksums of a block's content or of what it was compressed to, in their order."""
    sums = [zlib.adler32(data)] if flags & adler else []
    sums += [zlib.crc32(data)] if flags & crc else []
    return b"".join(value.to_bytes(4, "big") for value in sums)

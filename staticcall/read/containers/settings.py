"""How data was compressed, as far as its headers say: enough to compress in the same way again.

gzip      header        all of it up to the data
xz        check, then the filters in their order: delta or x86 with their argument, lzma2 with the dictionary's size,
          and lc, lp, pb
zstd      checksum, content_size, single_segment: whether they are there; window in bytes
lz4       legacy, or block_size in bytes, block_linked, block_checksum, content_checksum, content_size
bzip2     level
lzma      dictionary in bytes, lc, lp, pb
lzo       header        all of it up to the blocks; block_size in bytes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

from staticcall.abi import containers as abi
from staticcall.errors import MalformedError
from staticcall.model.container import Codec
from staticcall.model.image import ByteSource

Settings = tuple[tuple[str, int | bytes | str], ...]

_HEAD = 1 << 16


def settings_of(codec: Codec, source: ByteSource, at: int = 0) -> Settings:
    """The settings of the stream at an offset, which was unpacked without an error."""
    head = source.read(at, min(_HEAD if codec is Codec.GZIP else 1 << 11, source.size - at))
    try:
        return tuple(_READERS[codec](head))
    except (IndexError, ValueError) as error:
        raise MalformedError(f"has a {codec} header that makes no sense", offset=at) from error


def _gzip(head: bytes) -> Iterator[tuple[str, int | bytes | str]]:
    flags, end = head[3], 10
    if flags & 4:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for has in (flags & 8, flags & 16):
        if has:
            end = head.index(0, end) + 1
    yield "header", head[: end + (2 if flags & 2 else 0)]


def _xz(head: bytes) -> Iterable[tuple[str, int | bytes | str]]:
    at = abi.XZ_HEADER_SIZE
    block = at + (head[at] + 1) * 4
    # The first chunk says how literals are coded, unless nothing in it got smaller. An empty file has no block.
    coded = head[block + 5] if head[at] and head[block] >= 0xC0 else None
    return _xz_block(head[7], head[at:block] if head[at] else b"", coded)


@lru_cache(maxsize=64)
def _xz_block(check: int, head: bytes, coded: int | None) -> tuple[tuple[str, int | bytes | str], ...]:
    """The settings in a block's header; a tree has hundreds of files with the same."""
    return tuple(_xz_settings(check, head, coded))


def _xz_settings(check: int, head: bytes, coded: int | None) -> Iterator[tuple[str, int | bytes | str]]:
    yield "check", check
    if not head:
        return
    flags, at = head[1], 2
    for has in (flags & 0x40, flags & 0x80):
        if has:
            _, at = _number(head, at)
    for _ in range((flags & 3) + 1):
        number, at = _number(head, at)
        size, at = _number(head, at)
        argument = head[at : at + size]
        at += size
        if number == abi.XZ_LZMA2:
            yield "lzma2", _dictionary(argument[0])
        else:
            yield abi.XZ_FILTERS.get(number, f"filter-{number:#x}"), int.from_bytes(argument, "little")
    if coded is not None:
        yield from _properties(coded)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, as .xz has them; gives also the offset behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _dictionary(bits: int) -> int:
    return (1 << 32) - 1 if bits == 40 else (2 | bits & 1) << (bits // 2 + 11)


def _properties(byte: int) -> Iterator[tuple[str, int]]:
    yield "lc", byte % 9
    yield "lp", byte // 9 % 5
    yield "pb", byte // 45


def _zstd(head: bytes) -> Iterator[tuple[str, int | bytes | str]]:
    descriptor = head[4]
    single = descriptor >> 5 & 1
    kind = descriptor >> 6
    yield "checksum", descriptor >> 2 & 1
    yield "content_size", int(bool(kind or single))
    yield "single_segment", single
    if single:
        size = (1, 2, 4, 8)[kind]
        at = 5 + (0, 1, 2, 4)[descriptor & 3]
        yield "window", int.from_bytes(head[at : at + size], "little") + (256 if size == 2 else 0)
    else:
        base = 1 << (10 + (head[5] >> 3))
        yield "window", base + (base >> 3) * (head[5] & 7)


def _lz4(head: bytes) -> Iterator[tuple[str, int | bytes | str]]:
    legacy = head.startswith(abi.LZ4_LEGACY_MAGIC)
    yield "legacy", int(legacy)
    if not legacy:
        flags = head[4]
        yield "block_size", 1 << (8 + 2 * (head[5] >> 4 & 7))
        yield "block_linked", 1 - (flags >> 5 & 1)
        yield "block_checksum", flags >> 4 & 1
        yield "content_size", flags >> 3 & 1
        yield "content_checksum", flags >> 2 & 1


def _bzip2(head: bytes) -> Iterator[tuple[str, int | bytes | str]]:
    yield "level", int(head[3:4])


def _lzma(head: bytes) -> Iterator[tuple[str, int | bytes | str]]:
    yield "dictionary", int.from_bytes(head[1:5], "little")
    yield from _properties(head[0])


def _lzo(head: bytes) -> Iterator[tuple[str, int | bytes | str]]:
    # Behind the magic: three versions, method, level, flags, mode, two halves of a time, and the name's length.
    length = len(abi.LZOP_MAGIC) + 24
    end = length + 1 + head[length] + 4
    yield "header", head[:end]
    # The first block's size is the one that all but the last have; no block at all in an empty file.
    yield "block_size", int.from_bytes(head[end : end + 4], "big")


_READERS: Mapping[Codec, Callable[[bytes], Iterable[tuple[str, int | bytes | str]]]] = {
    Codec.GZIP: _gzip,
    Codec.XZ: _xz,
    Codec.ZSTD: _zstd,
    Codec.LZ4: _lz4,
    Codec.BZIP2: _bzip2,
    Codec.LZMA: _lzma,
    Codec.LZO: _lzo,
}

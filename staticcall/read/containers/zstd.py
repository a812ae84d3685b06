"""Frames of zstd, one at a time: the library does not say where one ends, nor that one is not complete."""

from __future__ import annotations

from typing import IO, cast

import zstandard

from staticcall.abi import containers as abi
from staticcall.errors import MalformedError
from staticcall.model.container import Codec
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import PIECE, Stream, damaged

_TRUNCATED = "the file is truncated"
_RLE, _RESERVED = 1, 3
_CHECKSUM_SIZE = 4
_WINDOW = 1 << 16


class _Region:
    """A part of a source as the file that the library reads from."""

    def __init__(self, source: ByteSource, at: int, stop: int) -> None:
        self._source, self._at, self._stop = source, at, stop

    def read(self, size: int = -1) -> bytes:
        left = self._stop - self._at
        data = self._source.read(self._at, left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def stream(source: ByteSource, at: int, feed: int) -> Stream:
    """One frame, and those behind it that are to be skipped."""
    end, content = _frame(source, at)
    decoder = zstandard.ZstdDecompressor()
    try:
        if content is not None and content <= PIECE:
            # Much faster than in pieces, and no more than one of them.
            yield decoder.decompress(source.read(at, end - at))
        else:
            region = cast(IO[bytes], _Region(source, at, end))
            reader = decoder.stream_reader(region, read_size=feed)
            while piece := reader.read(PIECE):
                yield piece
    except zstandard.ZstdError as error:
        raise damaged(Codec.ZSTD, error, at) from error
    while source.size - end >= 8 and (head := source.read(end, 8))[:4] in abi.SKIPPABLE_MAGICS:
        end += 8 + int.from_bytes(head[4:], "little")
        if end > source.size:
            raise _cut(source)
    return end


def peek_frame(head: bytes, size: int) -> bytes | None:
    """The first bytes of a frame's content, out of the first bytes of the frame."""
    return zstandard.ZstdDecompressor().stream_reader(head).read(size) or None


def _cut(source: ByteSource) -> MalformedError:
    return MalformedError("ends inside of its zstd data", offset=source.size, advice=_TRUNCATED)


def _frame(source: ByteSource, at: int) -> tuple[int, int | None]:
    """The offset behind the frame at `at`, and the size of its content where the header has it."""
    header = source.read(at, min(18, source.size - at))
    try:
        parameters = zstandard.get_frame_parameters(header)
        size = zstandard.frame_header_size(header)
    except zstandard.ZstdError as error:
        raise damaged(Codec.ZSTD, error, at) from error
    known = parameters.content_size
    end = _behind_blocks(source, at + size) + (_CHECKSUM_SIZE if parameters.has_checksum else 0)
    if end > source.size:
        raise _cut(source)
    return end, None if known == zstandard.CONTENTSIZE_UNKNOWN else known


def _behind_blocks(source: ByteSource, at: int) -> int:
    """Walk the blocks of a frame from the first one's offset on; each has a header of three bytes."""
    total = source.size
    window, start = b"", at
    while True:
        if at + 3 > total:
            raise _cut(source)
        if at + 3 > start + len(window):
            window, start = source.read(at, min(_WINDOW, total - at)), at
        place = at - start
        header = window[place] | window[place + 1] << 8 | window[place + 2] << 16
        kind = header >> 1 & 3
        if kind == _RESERVED:
            raise damaged(Codec.ZSTD, "a block has no kind that there is", at)
        at += 3 + (1 if kind == _RLE else header >> 3)
        if header & 1:
            return at

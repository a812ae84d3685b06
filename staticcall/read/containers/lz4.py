"""Both forms of lz4: frames, which its library reads, and the legacy form of kernels, of which it does the blocks."""

from __future__ import annotations

import lz4.block

from staticcall.abi import containers as abi
from staticcall.errors import MalformedError
from staticcall.model.container import Codec
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import Stream, damaged, decoder_of, fed

# A block of 8 MiB that did not get smaller: what LZ4_compressBound gives.
_LARGEST_BLOCK = abi.LZ4_LEGACY_BLOCK + abi.LZ4_LEGACY_BLOCK // 255 + 16
_SIZE = 4


def stream(source: ByteSource, at: int, feed: int) -> Stream:
    """One frame, or all blocks behind one legacy magic."""
    if source.read(at, 4) == abi.LZ4_LEGACY_MAGIC:
        end = yield from _legacy(source, at + 4)
    else:
        end = yield from fed(decoder_of(Codec.LZ4), source, at, feed, Codec.LZ4)
    return end


def _legacy(source: ByteSource, at: int) -> Stream:
    """Blocks, each behind its compressed size; the file's end or another magic ends them."""
    while at < source.size:
        if source.size - at < _SIZE:
            raise MalformedError("ends inside of its lz4 data", offset=at, advice="the file is truncated")
        size = int.from_bytes(source.read(at, _SIZE), "little")
        if size > _LARGEST_BLOCK or size == 0:
            return at
        if at + _SIZE + size > source.size:
            raise MalformedError("ends inside of its lz4 data", offset=source.size, advice="the file is truncated")
        try:
            piece = lz4.block.decompress(source.read(at + _SIZE, size), uncompressed_size=abi.LZ4_LEGACY_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise damaged(Codec.LZ4, error, at) from error
        if piece:
            yield piece
        at += _SIZE + size
    return at

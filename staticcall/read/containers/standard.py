"""The codecs of the standard library, behind one protocol."""

from __future__ import annotations

import zlib

from staticcall.model.container import Codec
from staticcall.read.containers.codecs import Decoder

# For the dictionary: `xz -9` takes 64 MiB, kernels 128 MiB.
_MOST_MEMORY = 1 << 30
_GZIP_HEADER = 16 + zlib.MAX_WBITS


def decoder(codec: Codec) -> Decoder:
    """A decoder for one stream of gzip, xz, lzma or bzip2."""
    if codec is Codec.GZIP:
        return _Gzip()
    if codec is Codec.BZIP2:
        from bz2 import BZ2Decompressor  # noqa: PLC0415 - one codec at a time

        return BZ2Decompressor()
    import lzma  # noqa: PLC0415 - one codec at a time

    return lzma.LZMADecompressor(lzma.FORMAT_XZ if codec is Codec.XZ else lzma.FORMAT_ALONE, _MOST_MEMORY)


class _Gzip:
    """zlib keeps the input that it did not get to, and wants it again."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP_HEADER)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(data or self._inner.unconsumed_tail, max_length)

"""The codecs of the standard library, and what takes the place of one, behind one protocol."""

from __future__ import annotations

import zlib
from contextlib import suppress

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
    if codec is Codec.XZ:
        # Python is commonly linked to a liblzma before 5.6, which takes half as long again as the one in this package
        # and decodes the same. The verifier always takes Python's own.
        with suppress(ImportError):
            import lzma_mt  # noqa: PLC0415 - the extra `fast`

            return lzma_mt.LZMADecompressor(lzma_mt.FORMAT_XZ, _MOST_MEMORY)
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

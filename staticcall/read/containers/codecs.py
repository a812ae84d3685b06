"""Compressed data becomes what is in it, in pieces or whole; libraries do the codecs, here is only what frames them.

Nothing is taken on trust: a piece is at most a few mebibytes, and whoever asks limits all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from io import BytesIO
from typing import Protocol

from staticcall.abi import containers as abi
from staticcall.errors import InputError, MalformedError, UnsupportedError
from staticcall.model.container import Codec, Compressed
from staticcall.model.image import ByteSource
from staticcall.read.containers.settings import settings_of
from staticcall.read.object import BytesSource

# What one step gives at most, and what it is given.
PIECE = 1 << 22
FEED = 1 << 20
# Small streams follow each other where somebody wants to stall a reader; then each is given little.
_FEED_AGAIN = 1 << 12
_MOST_STREAMS = 1 << 16
# More than the first bytes of any file say what it is, and what is mostly enough of a compressed one to see them.
_PEEK = 1 << 10
PEEKED = 1 << 18
# Beyond this, content has to be worth it: real files shrink to a fifth, and made-up ones of zeros to a thousandth.
_ALWAYS = 256 << 20
_MOST_RATIO = 64
# Nothing larger is held in memory.
_NEVER = 2 << 30

Stream = Generator[bytes, None, int]


def codec_of(head: bytes) -> Codec | None:
    """The compression of a file that starts with these bytes (13 are enough)."""
    if head.startswith(abi.GZIP_MAGIC):
        return Codec.GZIP
    if head.startswith(abi.XZ_MAGIC):
        return Codec.XZ
    if head.startswith(abi.ZSTD_MAGIC):
        return Codec.ZSTD
    if head.startswith((abi.LZ4_MAGIC, abi.LZ4_LEGACY_MAGIC)):
        return Codec.LZ4
    if head.startswith(abi.BZIP2_MAGIC) and head[3:4].isdigit():
        return Codec.BZIP2
    if head.startswith(abi.LZOP_MAGIC):
        return Codec.LZO
    return Codec.LZMA if abi.is_lzma(head) else None


def limit_for(size: int, *, streamed: bool = False) -> int:
    """What a file of `size` bytes may grow to: 256 MiB or 64 times its size, and 2 GiB if that has to be in memory."""
    most = max(_ALWAYS, _MOST_RATIO * size)
    return most if streamed else min(most, _NEVER)


def unpack(data: bytes, codec: Codec, limit: int) -> tuple[bytes, Compressed]:
    """All content of a compressed file, and how it is compressed.

    Raises `MalformedError` where it is damaged or something else follows, `UnsupportedError` where it would be more
    than `limit` bytes.
    """
    source = BytesSource(data)
    pieces = limited(file_pieces(source, codec), limit)
    first, second = next(pieces, b""), next(pieces, None)
    compressed = Compressed(codec, settings_of(codec, source))
    if second is None:
        return first, compressed
    # Its buffer grows in place and becomes the result without a copy.
    whole = BytesIO()
    whole.write(first)
    whole.write(second)
    del first, second
    for piece in pieces:
        whole.write(piece)
    return whole.getvalue(), compressed


def limited(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The same pieces; raises `UnsupportedError` as soon as they are more than `limit` bytes."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise UnsupportedError(
                f"unpacks to more than {limit:,} bytes", advice="unpack it yourself if it is meant to"
            )
        yield piece


def file_pieces(source: ByteSource, codec: Codec) -> Iterator[bytes]:
    """The content of a file that is compressed from its first byte to its last."""
    end = yield from pieces_from(source, codec, 0)
    if end != source.size:
        raise MalformedError(
            f"has {source.size - end} bytes of something else behind its {codec} data",
            offset=end,
            advice="the file is damaged, or more than one file",
        )


def pieces_from(source: ByteSource, codec: Codec, at: int) -> Stream:
    """The content of all streams of one codec that follow each other; returns the offset behind them and padding."""
    stream = stream_of(codec)
    for number in range(_MOST_STREAMS):
        at = yield from stream(source, at, FEED if not number else _FEED_AGAIN)
        if at == source.size:
            return at
        following = _behind_zeros(source, at)
        if codec is Codec.XZ and (following - at) % 4:
            raise MalformedError("has padding of a size that no .xz file has", offset=at, advice="the file is damaged")
        if following == source.size or codec_of(source.read(following, min(16, source.size - following))) is not codec:
            return following
        at = following
    raise UnsupportedError(f"has more than {_MOST_STREAMS:,} {codec} streams", advice="compress it as one")


def _behind_zeros(source: ByteSource, at: int) -> int:
    """The offset of the first byte from `at` on that is not zero."""
    size = 64
    while at < source.size:
        piece = source.read(at, min(size, source.size - at))
        rest = piece.lstrip(b"\0")
        at += len(piece) - len(rest)
        if rest:
            break
        size = FEED
    return at


def stream_of(codec: Codec) -> Callable[[ByteSource, int, int], Stream]:
    """What reads one stream of a codec: takes the source, the offset and how much to read first; returns its end."""
    if codec is Codec.ZSTD:
        from staticcall.read.containers.zstd import stream  # noqa: PLC0415 - its library takes long to load
    elif codec is Codec.LZ4:
        from staticcall.read.containers.lz4 import stream  # noqa: PLC0415 - its library
    elif codec is Codec.LZO:
        from staticcall.read.containers.lzop import stream  # noqa: PLC0415 - its library
    else:

        def stream(source: ByteSource, at: int, feed: int) -> Stream:
            return fed(decoder_of(codec), source, at, feed, codec)

    return stream


def peek(head: bytes, codec: Codec) -> bytes | None:
    """Some of the first bytes of what is inside, out of the first bytes of what is compressed.

    Enough to tell what it is, and cheap; None where these bytes are not enough, or damaged.
    """
    try:
        if codec is Codec.ZSTD:
            from staticcall.read.containers.zstd import peek_frame  # noqa: PLC0415 - its library takes long to load

            return peek_frame(head, _PEEK)
        if codec is Codec.LZO or head.startswith(abi.LZ4_LEGACY_MAGIC):
            # Their blocks are read whole.
            return next(stream_of(codec)(BytesSource(head), 0, FEED), b"")[:_PEEK]
        return decoder_of(codec).decompress(head, _PEEK) or None
    except MemoryError:
        raise
    # As in `fed`.
    except Exception:
        return None


def beginning(source: ByteSource, codec: Codec) -> bytes:
    """Some of the first bytes of what is inside; none where that is damaged."""
    inside = peek(source.read(0, min(source.size, PEEKED)), codec)
    if inside is not None:
        return inside
    # Some blocks are larger than that.
    try:
        return next(pieces_from(source, codec, 0), b"")
    except InputError:
        return b""


def decoder_of(codec: Codec) -> Decoder:
    """A decoder for one stream of a codec that has decoders of this kind."""
    if codec is Codec.LZ4:
        from lz4.frame import LZ4FrameDecompressor  # noqa: PLC0415 - only where there is lz4

        frames: Decoder = LZ4FrameDecompressor()
        return frames
    from staticcall.read.containers.standard import decoder  # noqa: PLC0415 - it needs this module

    return decoder(codec)


class Decoder(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool:
        """Whether the stream's end was read."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without more input."""
        ...

    @property
    def unused_data(self) -> bytes | None:
        """What was given and lies behind the stream's end."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take more input, give at most so many bytes."""
        ...


def fed(decoder: Decoder, source: ByteSource, at: int, feed: int, codec: Codec) -> Stream:
    """One stream through one decoder, which raises what it likes about damage."""
    start, size = at, source.size
    while not decoder.eof:
        given = b""
        if decoder.needs_input:
            if at >= size:
                raise MalformedError(f"ends inside of its {codec} data", offset=size, advice="the file is truncated")
            given = source.read(at, min(feed, size - at))
            at += len(given)
            feed = min(feed * 2, FEED)
        try:
            piece = decoder.decompress(given, PIECE)
        # lzma and zlib have errors of their own, bz2 raises OSError and ValueError, lz4 RuntimeError.
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise damaged(codec, error, start) from error
        if piece:
            yield piece
        elif not given and not decoder.eof and not decoder.needs_input:
            raise damaged(codec, "it makes no progress", start)
    return at - len(decoder.unused_data or b"")


def damaged(codec: Codec, reason: object, offset: int) -> InputError:
    """What to say where a codec's library refuses its data; `offset` is that of the stream."""
    words = str(reason).strip().rstrip(".").splitlines()
    what = f"its {codec} data cannot be unpacked: {words[0] if words else 'it is damaged'}"
    # liblzma's "Memory usage limit exceeded", and zstd's "Frame requires too much memory for decoding".
    if "memory" in what.lower():
        return UnsupportedError(what, offset=offset, advice="compress it with a smaller dictionary or window")
    return MalformedError(what, offset=offset, advice="the file is damaged")

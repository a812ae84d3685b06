"""One layer off: a compressed file, or the kernel out of its boot image."""

from __future__ import annotations

from staticcall.abi import containers as abi
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.container import MemberOf, Unpacked
from staticcall.read.containers.codecs import codec_of, limit_for, unpack
from staticcall.read.containers.kind import archive_of

HEAD_SIZE = abi.HEAD_SIZE
_SIZE_OF_SIZE = 4
_WORDS = {MemberOf.DEB: "a package of Debian", MemberOf.CPIO: "a cpio archive"}


def peel(data: bytes, outermost: int) -> Unpacked | None:
    """What is inside of a file, and in which layer; None where the file is no container.

    `outermost` is the size of the file that all of this came out of, which limits to how much it may grow. Raises
    `UnsupportedError` for archives, of which a member has to be named.
    """
    head = data[:HEAD_SIZE]
    if not is_packed(head):
        return None
    codec = codec_of(head)
    if codec is None:
        return _kernel_of(data)
    content, compressed = unpack(data, codec, limit_for(outermost))
    return Unpacked(content, (compressed,))


def is_packed(head: bytes) -> bool:
    """Whether a file that starts with these bytes (`HEAD_SIZE` are enough) has one other in it, as `peel` finds it.

    Raises `UnsupportedError` for archives.
    """
    if codec_of(head) is not None or abi.is_bzimage(head):
        return True
    kind = archive_of(head)
    if kind in _WORDS:
        raise UnsupportedError(f"is {_WORDS[kind]}, which holds many files", advice="name one of them, as FILE(MEMBER)")
    return False


def _kernel_of(data: bytes) -> Unpacked:
    """What the boot image's own decompressor would make of its payload."""
    from staticcall.read.containers.bzimage import find_payload  # noqa: PLC0415 - only for boot images

    found = find_payload(data)
    if found is None:
        raise MalformedError("is a boot image without a payload", offset=0x1F1, advice="the file is damaged")
    packed = data[found.offset : found.offset + found.stream_size]
    limit = min(found.unpacked_size, limit_for(len(data)))
    content, compressed = unpack(packed, found.payload.codec, limit)
    if len(content) != found.unpacked_size:
        raise MalformedError(
            f"its payload unpacks to {len(content)} bytes instead of {found.unpacked_size}",
            offset=found.offset + found.size - _SIZE_OF_SIZE,
            advice="the file is damaged",
        )
    return Unpacked(content, (found._replace(payload=compressed),))

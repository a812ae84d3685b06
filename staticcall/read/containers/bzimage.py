"""Where the payload of a bzImage is, with every field of the header held against the file."""

from __future__ import annotations

from staticcall.abi import bzimage as abi
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.container import BzImage, Compressed
from staticcall.read.containers.codecs import codec_of

# As much as is needed to tell a codec.
_HEAD = 16
_REBUILD = "the file is damaged, or no kernel for x86"


def is_bzimage(head: bytes) -> bool:
    """Whether a file that starts with these bytes (0x264 are enough) is a boot image of an x86 kernel."""
    return (
        head[abi.MAGIC_AT : abi.MAGIC_AT + len(abi.MAGIC)] == abi.MAGIC
        and head[abi.BOOT_FLAG : abi.BOOT_FLAG + len(abi.BOOT_FLAG_VALUE)] == abi.BOOT_FLAG_VALUE
    )


def find_payload(data: bytes) -> BzImage | None:
    """The payload of a boot image, None for any other file.

    Raises `MalformedError` where the setup header contradicts the file, `UnsupportedError` for an image that tells
    no payload, or one of an unknown compression.
    """
    if not is_bzimage(data[: abi.HEADER_END]):
        return None
    if len(data) < abi.HEADER_END:
        raise MalformedError("ends within the setup header of a bzImage", offset=len(data), advice=_REBUILD)
    (version,) = abi.HALF.unpack_from(data, abi.VERSION)
    if version < abi.VERSION_WITH_PAYLOAD:
        raise UnsupportedError(
            f"is a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}, which has no place for a payload",
            offset=abi.VERSION,
            advice="give its vmlinux",
        )
    protected, end = protected_mode(data)
    offset, size = abi.LENGTHS.unpack_from(data, abi.PAYLOAD_OFFSET)
    if not offset or size <= abi.SIZE_OF_SIZE:
        raise UnsupportedError("is a bzImage without a payload", offset=abi.PAYLOAD_OFFSET, advice="give its vmlinux")
    if offset + size > end - protected:
        raise MalformedError(
            f"the payload of {size} bytes at {protected + offset:#x} runs past the code of the bzImage, which ends at"
            f" {end:#x}",
            offset=abi.PAYLOAD_OFFSET,
            advice=_REBUILD,
        )
    start = protected + offset
    codec = codec_of(data[start : start + min(size, _HEAD)])
    if codec is None:
        raise UnsupportedError(
            f"the payload of the bzImage begins with {data[start : start + 4].hex()}, which is no known compression",
            offset=start,
            advice="give its vmlinux",
        )
    (unpacked,) = abi.WORD.unpack_from(data, start + size - abi.SIZE_OF_SIZE)
    return BzImage(start, size, Compressed(codec), unpacked)


def protected_mode(data: bytes) -> tuple[int, int]:
    """The offsets of the first byte of the protected mode's code and of the first one behind it.

    Raises `MalformedError` where the file is shorter.
    """
    start, end = abi.code_of(data)
    if end > len(data):
        raise MalformedError(
            f"the bzImage has {len(data)} bytes, and its setup header promises {end}",
            offset=abi.SYSSIZE,
            advice="the file is cut off",
        )
    return start, end

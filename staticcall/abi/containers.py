"""How the files around an ELF file begin, and the fields of compressed formats that readers and writers need.

gzip     1f 8b 08                RFC 1952
xz       fd "7zXZ" 00            the .xz file format 1.2
zstd     28 b5 2f fd             RFC 8878; 5x 2a 4d 18 is a frame that is skipped
lz4      04 22 4d 18             the LZ4 frame format 1.6
lz4      02 21 4c 18             its legacy form, which kernels use: blocks of 8 MiB, each behind its size
bzip2    "BZh" 1-9
lzma     5d 00 00                has no magic: properties, dictionary and size that make sense
lzo      89 "LZO" 00 0d 0a 1a 0a lzop's; its big-endian header is described in its source, src/lzop.c
deb      an archive (.a) whose first member is `debian-binary`; deb(5)
cpio     "070701", "070702"      Documentation/driver-api/early-userspace/buffer-format.rst
bzImage  55 aa, "HdrS" at 0x1fe  see staticcall.abi.bzimage
"""

from __future__ import annotations

from typing import Final

from staticcall.abi import archive

# Enough of a file to tell what it is.
HEAD_SIZE: Final = 0x208

GZIP_MAGIC: Final = b"\x1f\x8b\x08"
XZ_MAGIC: Final = b"\xfd7zXZ\0"
XZ_HEADER_SIZE: Final = 12
# The filters of xz by their number, as far as kernels for x86 and liblzma's Python module know them.
XZ_LZMA2: Final = 0x21
XZ_FILTERS: Final = {0x03: "delta", 0x04: "x86", XZ_LZMA2: "lzma2"}

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGICS: Final = tuple(bytes((0x50 | low, 0x2A, 0x4D, 0x18)) for low in range(16))

LZ4_MAGIC: Final = b"\x04\x22\x4d\x18"
LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK: Final = 8 << 20

BZIP2_MAGIC: Final = b"BZh"
# Properties, dictionary size, size of the content.
LZMA_HEADER_SIZE: Final = 13
LZMA_UNKNOWN_SIZE: Final = (1 << 64) - 1
_LZMA_MOST = 1 << 38
_LZMA_MAGIC = b"\x5d\0"

LZOP_MAGIC: Final = b"\x89LZO\0\r\n\x1a\n"
LZOP_ADLER32_PLAIN: Final = 0x1
LZOP_ADLER32_PACKED: Final = 0x2
LZOP_EXTRA_FIELD: Final = 0x40
LZOP_CRC32_PLAIN: Final = 0x100
LZOP_CRC32_PACKED: Final = 0x200
LZOP_FILTER: Final = 0x800
LZOP_CRC32_HEADER: Final = 0x1000

CPIO_MAGICS: Final = (b"070701", b"070702")
CPIO_OTHERS: Final = (b"070707", b"\xc7\x71", b"\x71\xc7")

_DEB_FIRST = b"debian-binary"


def is_lzma(head: bytes) -> bool:
    """Whether this may be the header of an .lzma file, which has no magic of its own.

    The properties are the default ones, as kernels want it; the dictionary's size is 2^n or 2^n + 2^(n-1), and the
    size of the content is below 256 GiB or unknown, as liblzma's reader wants it.
    """
    if len(head) < LZMA_HEADER_SIZE or not head.startswith(_LZMA_MAGIC):
        return False
    dictionary, size = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    top = 1 << dictionary.bit_length() >> 1
    return dictionary in (top, top | top >> 1) and dictionary > 0 and (size == LZMA_UNKNOWN_SIZE or size < _LZMA_MOST)


def is_bzimage(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a boot image of a kernel."""
    from staticcall.abi import bzimage  # noqa: PLC0415 - not for what is no candidate

    return (
        head[bzimage.MAGIC_AT : bzimage.MAGIC_AT + len(bzimage.MAGIC)] == bzimage.MAGIC
        and head[bzimage.BOOT_FLAG : bzimage.BOOT_FLAG + len(bzimage.BOOT_FLAG_VALUE)] == bzimage.BOOT_FLAG_VALUE
    )


def is_deb(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a package of Debian."""
    return head.startswith(archive.MAGIC + _DEB_FIRST)


def is_cpio(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a cpio archive as kernels read it."""
    return head.startswith(CPIO_MAGICS)

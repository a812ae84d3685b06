"""The boot image of an x86 kernel, a bzImage (vmlinuz), as the boot protocol and the kernel's build define it.

    setup           the real-mode code: a boot sector, and as many sectors as byte 0x1f1 says (0 means 4)
    protected mode  the decompressor, with the payload inside of it; 16 * syssize bytes
    certificates    the PE certificate table, where somebody signed the image; not part of either

Offsets of the setup header count from the start of the file:

    0x1f1  1 byte   setup_sects
    0x1f4  4 bytes  syssize, in paragraphs of 16 bytes
    0x1fe  2 bytes  boot_flag, 0xaa55
    0x202  4 bytes  "HdrS"
    0x206  2 bytes  version of the protocol; the payload's fields are there since 2.08, init_size since 2.10
    0x248  4 bytes  payload_offset, from the start of the protected mode's code
    0x24c  4 bytes  payload_length
    0x260  4 bytes  init_size: how much memory the kernel needs from its start on, until it reads the memory's map

The payload is what a compressor wrote of vmlinux and the list of what KASLR relocates, and behind it the size of
that in four bytes. A .gz file ends with this size anyway, so there it is part of the compressed stream. The
decompressor has two words of its own side by side, in its .rodata (mkpiggy writes them since 5.10): input_len, which
is payload_length again, and output_len, the size in the four bytes. It is called with both, and looks for the list
at the end of the output. Older ones have the lengths in instructions.

It unpacks in place: the image is moved to the end of init_size bytes, and the output begins at their start. What is
written may never overtake what is still to be read, so the build makes init_size at least

    ZO_end + align4096(output_len + output_len / 256 + 128 KiB - input_len)

where ZO_end is the size of the decompressor in memory (the PE header has it: SizeOfImage, less the setup, since 6.7
and in the stable series since then). A payload that is shorter than before therefore needs more memory. Measured:
Debian's 6.1 and 6.12 have exactly this value, so they have nothing to spare.

Until 6.15 the last four bytes of the protected mode's code are a CRC-32 of all before: the usual polynomial, begun
with ones, not inverted at the end. So the CRC over all, itself included, is 0. It is made before the image is signed,
when the checksum and the directory entry of the certificates are 0.

As an EFI application the image is a PE file too, since the setup begins with a DOS header. Its headers, those of the
sections too, are in front of the setup header:

    0x3c               4 bytes  offset of "PE", from where on the next count
    +0x06              2 bytes  number of sections, +0x14 size of the optional header, which begins at +0x18
    optional +56       4 bytes  SizeOfImage, +64 CheckSum, +108 (PE32+; 92 for PE32) how many directories
    optional +112      8 bytes each, the directories (PE32: +96); number 4 is offset and size of the certificates

The sum of a PE file adds its 16-bit words, with the carry added again and the checksum itself left out, and then the
file's size. EFI firmware does not look at it; whoever signs writes it.

Sources: Documentation/arch/x86/boot.rst; arch/x86/boot/header.S (INIT_SIZE), arch/x86/boot/tools/build.c until 6.15,
arch/x86/boot/compressed/mkpiggy.c, misc.c and head_64.S, scripts/Makefile.lib (size_append), Linux 5.10 to 6.12;
Microsoft's PE Format; sbsigntools' image.c for the sum.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final

SETUP_SECTORS: Final = 0x1F1
SYSSIZE: Final = 0x1F4
BOOT_FLAG: Final = 0x1FE
MAGIC_AT: Final = 0x202
VERSION: Final = 0x206
PAYLOAD_OFFSET: Final = 0x248
PAYLOAD_LENGTH: Final = 0x24C
INIT_SIZE: Final = 0x260
HEADER_END: Final = 0x264

BOOT_FLAG_VALUE: Final = b"\x55\xaa"
MAGIC: Final = b"HdrS"
VERSION_WITH_PAYLOAD: Final = 0x208
VERSION_WITH_INIT_SIZE: Final = 0x20A
SECTOR: Final = 512
DEFAULT_SETUP_SECTORS: Final = 4
PARAGRAPH: Final = 16

WORD: Final = Struct("<I")
HALF: Final = Struct("<H")
LENGTHS: Final = Struct("<II")
SIZE_OF_SIZE: Final = 4
SIZE_OF_CRC: Final = 4

PE_AT: Final = 0x3C
DOS_MAGIC: Final = b"MZ"
PE_MAGIC: Final = b"PE\0\0"
PE_SECTIONS: Final = 0x06
PE_OPTIONAL_SIZE: Final = 0x14
PE_OPTIONAL: Final = 0x18
OPTIONAL_IMAGE_SIZE: Final = 56
OPTIONAL_CHECKSUM: Final = 64
# By the magic of the optional header: where the number of directories is, and right behind it they are.
OPTIONAL_DIRECTORIES: Final = {0x10B: 92, 0x20B: 108}
DIRECTORY: Final = Struct("<II")
CERTIFICATES: Final = 4
# Virtual size, virtual address: behind a section's name of eight bytes.
PE_SECTION_SIZE: Final = 40
PE_SECTION_PLACE: Final = Struct("<8xII")

_MARGIN: Final = 128 << 10
_PAGE: Final = 4096


def code_of(data: bytes | bytearray) -> tuple[int, int]:
    """Where the setup header says that the protected mode's code begins, and the offset of the first byte behind it."""
    start = ((data[SETUP_SECTORS] or DEFAULT_SETUP_SECTORS) + 1) * SECTOR
    return start, start + WORD.unpack_from(data, SYSSIZE)[0] * PARAGRAPH


def crc_of(data: bytes | bytearray | memoryview) -> int:
    """The CRC-32 that the build appends to these bytes."""
    return zlib.crc32(data) ^ 0xFFFF_FFFF


def room_in_front(unpacked: int, packed: int) -> int:
    """How far behind the output's start the decompressor has to stand so that it can unpack in place, in bytes."""
    margin = (unpacked >> 8) + _MARGIN
    extra = unpacked + margin - packed if unpacked > packed else margin
    return -(-extra // _PAGE) * _PAGE


def pe_checksum(data: bytes | bytearray, checksum_at: int) -> int:
    """The checksum of a PE file whose own place, which is even, does not count."""
    # The sum of 16-bit words with the carry added again is the file as one number, modulo 0xffff.
    blank = bytearray(data)
    WORD.pack_into(blank, checksum_at, 0)
    total = int.from_bytes(blank, "little") % 0xFFFF
    if not total and any(blank):
        total = 0xFFFF  # so ends a sum that never drops a carry
    return (total + len(data)) & 0xFFFF_FFFF

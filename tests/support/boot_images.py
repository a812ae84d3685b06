"""Small bzImages with everything that real ones have but code: setup header, PE headers, payload, lengths, sums.

Sources: Documentation/arch/x86/boot.rst; arch/x86/boot/header.S and tools/build.c; Microsoft's PE Format.
"""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

# As the kernel's build compresses its payload (scripts/Makefile.lib), but for the strength.
COMPRESSORS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gzip": ("gzip", "-nc9"),
        "xz": ("xz", "-c", "--check=crc32", "--x86", "--lzma2=dict=1MiB"),
        "zstd": ("zstd", "-qc"),
        "lz4": ("lz4", "-qcl9"),
        "bzip2": ("bzip2", "-c9"),
        "lzma": ("lzma", "-c1"),
        "lzo": ("lzop", "-c9"),
    }
)
PE, OPTIONAL = 0x40, 0x58
IMAGE_SIZE, CHECKSUM, CERTIFICATES = OPTIONAL + 56, OPTIONAL + 64, OPTIONAL + 144
TEXT_SECTION, DATA_SECTION = OPTIONAL + 160, OPTIONAL + 200
SECTORS, SYSSIZE, VERSION, PAYLOAD, INIT_SIZE = 0x1F1, 0x1F4, 0x206, 0x248, 0x260
START = 0x1000
# What the decompressor has in memory behind its file.
BSS = 0x8000
_PAYLOAD_AT = 0x200


class Boot(NamedTuple):
    """What a boot image says of itself."""

    payload: int
    length: int
    init_size: int
    image_size: int
    checksum: int
    certificates: tuple[int, int]


@cache
def compress(codec: str, data: bytes) -> bytes:
    return subprocess.run(COMPRESSORS[codec], input=data, capture_output=True, check=True).stdout


def payload_of(codec: str, data: bytes) -> bytes:
    """What the build makes of vmlinux: the stream, and its size where it has none at its end."""
    stream = compress(codec, data)
    return stream if codec == "gzip" else stream + struct.pack("<I", len(data))


def make(
    payload: bytes,
    *,
    lengths: int = 1,
    crc: bool = True,
    checksum: bool = False,
    signed: bool = False,
    mapped: bool = False,
) -> bytes:
    """A boot image around a payload.

    `lengths` is how often the decompressor's two lengths are there, `mapped` tells whether the PE headers give all of
    the memory that the kernel is unpacked in. A CRC is older than a checksum and a signature.
    """
    (size,) = struct.unpack("<I", payload[-4:])
    room = _PAYLOAD_AT + len(payload)
    code = bytearray(b"\x90" * _PAYLOAD_AT + payload + b"\xcc" * (-room % 16))
    code += b"decompressor" + b"".join(struct.pack("<II", len(payload), size) + b"\xcc" * 8 for _ in range(lengths))
    code += b"\xcc" * (-len(code) % 512 + 512)
    end = START + len(code)
    memory = end + BSS - START + -(-(size + size // 256 + (128 << 10) - len(payload)) // 4096) * 4096
    image = bytearray(_setup(end, len(payload), memory, START + memory if mapped else end + BSS) + code)
    if crc:
        image[-4:] = struct.pack("<I", zlib.crc32(image[:-4]) ^ 0xFFFFFFFF)
    if signed:
        image = _signed(image)
    if checksum:
        struct.pack_into("<I", image, CHECKSUM, pe_sum(bytes(image)))
    return bytes(image)


def _setup(end: int, length: int, memory: int, mapped: int) -> bytearray:
    setup = bytearray(START)
    setup[:2] = b"MZ"
    struct.pack_into("<I", setup, 0x3C, PE)
    struct.pack_into("<4sHH12xHH", setup, PE, b"PE\0\0", 0x8664, 2, DATA_SECTION + 40 - OPTIONAL - 80, 0x206)
    struct.pack_into("<H", setup, OPTIONAL, 0x20B)
    struct.pack_into("<I", setup, IMAGE_SIZE, mapped)
    struct.pack_into("<I", setup, OPTIONAL + 108, 6)
    data = end - 512
    struct.pack_into("<8sIIII", setup, TEXT_SECTION, b".text", data - START, START, data - START, START)
    struct.pack_into("<8sIIII", setup, DATA_SECTION, b".data", mapped - data, data, 512, data)
    setup[SECTORS] = START // 512 - 1
    struct.pack_into("<I", setup, SYSSIZE, (end - START) // 16)
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, VERSION, 0x20F)
    struct.pack_into("<II", setup, PAYLOAD, _PAYLOAD_AT, length)
    struct.pack_into("<I", setup, INIT_SIZE, memory)
    return setup


def _signed(image: bytearray) -> bytearray:
    table = struct.pack("<IHH", 64, 0x200, 2) + b"signature".ljust(56, b"\0")
    image = image + bytes(-len(image) % 8)
    struct.pack_into("<II", image, CERTIFICATES, len(image), len(table))
    return image + table


def read(image: bytes) -> Boot:
    """The fields of a boot image."""
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start, size = struct.unpack_from("<II", image, CERTIFICATES)
    fields = [struct.unpack_from("<I", image, at)[0] for at in (INIT_SIZE, IMAGE_SIZE, CHECKSUM)]
    return Boot((image[SECTORS] + 1) * 512 + offset, length, fields[0], fields[1], fields[2], (start, size))


def pe_sum(image: bytes) -> int:
    """The checksum of a PE file: its words but for the checksum, each carry added again, and its size."""
    words: tuple[int, ...] = struct.unpack(f"<{len(image) // 2 + len(image) % 2}H", image + bytes(len(image) % 2))
    total = sum(words[: CHECKSUM // 2]) + sum(words[CHECKSUM // 2 + 2 :])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(image)


def crc_holds(image: bytes) -> bool:
    """Whether the CRC over all code is 0, as Documentation/arch/x86/boot.rst promises."""
    end = (image[SECTORS] + 1) * 512 + 16 * struct.unpack_from("<I", image, SYSSIZE)[0]
    return zlib.crc32(image[:end]) ^ 0xFFFFFFFF == 0


def write(path: Path, image: bytes) -> Path:
    path.write_bytes(image)
    return path

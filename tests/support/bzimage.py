"""What a bzImage decompresses to: the stripped vmlinux, and behind it the list of what is relocated.

Sources: Documentation/arch/x86/boot.rst (setup_sects, payload_offset, payload_length) for where it is, and
arch/x86/boot/compressed/misc.c, handle_relocations(), for the list.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import kernels

_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248
_SECTOR = 512
# Behind what is compressed stands its size.
_SIZE_OF_SIZE = 4
_PROGRAMS: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"BZh": "bzip2",
    b"\x5d\0\0": "lzma",
    b"\x89LZO": "lzop",
}
# The list has addresses without their upper half.
_UPPER_HALF: Final = 0xFFFFFFFF << 32


class Relocated(NamedTuple):
    """The list's bytes, and the addresses in it: 64-bit slots, inverse 32-bit ones, 32-bit ones."""

    data: bytes
    wide: frozenset[int]
    inverse: frozenset[int]
    narrow: frozenset[int]


def missing_tools() -> tuple[str, ...]:
    """Name what may be needed here and this machine lacks."""
    return tuple(tool for tool in _PROGRAMS.values() if shutil.which(tool) is None)


def packed(kernel: Path) -> Path:
    """The bzImage of a cached kernel; raises `kernels.KernelMissingError`."""
    (found,) = kernels.image(kernel).glob("boot/vmlinuz-*")
    return found


def unpack(bzimage: Path, out: Path) -> Path:
    """Write what the kernel's own decompressor would make of a bzImage."""
    packed = payload(bzimage.read_bytes())
    (program,) = [program for magic, program in _PROGRAMS.items() if packed.startswith(magic)]
    if program != "gzip":  # whose own files end with it
        packed = packed[:-_SIZE_OF_SIZE]
    with out.open("wb") as file:
        subprocess.run([program, "-dcq"], input=packed, stdout=file, check=True)
    return out


def payload(data: bytes) -> bytes:
    """What a boot image has of its kernel, compressed, with the size behind it."""
    start = (data[_SETUP_SECTORS] + 1) * _SECTOR
    offset, size = struct.unpack_from("<II", data, _PAYLOAD)
    return data[start + offset : start + offset + size]


def relocated(unpacked: bytes) -> Relocated:
    """Walk the list from the end of it, as the kernel does; for kernels before 6.14."""
    lists: list[frozenset[int]] = []
    place = len(unpacked)
    for _ in range(3):
        found = set()
        while True:
            place -= 4
            (word,) = struct.unpack_from("<I", unpacked, place)
            if not word:
                break
            found.add(word | _UPPER_HALF)
        lists.append(frozenset(found))
    narrow, inverse, wide = lists
    return Relocated(unpacked[place:], wide, inverse, narrow)

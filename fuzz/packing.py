"""What is around files, made in this process and in no time, so that what is inside can be damaged before.

pack("xz", content)        one layer around a file
layers_of("deb", content)  where its own headers are
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import lz4.block
import lz4.frame
import zstandard
from lzallright import LZOCompressor

from fuzz.regions import Map, Region, regions_of
from tests.support import boot_images
from tests.support.archives import packed as archived

MEMBER: Final = "boot/file.ko"
"""The name of what is in an archive."""
_OTHER = "boot/other"
_XZ_FILTERS: Final = ({"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20})
_LZMA1: Final = ({"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 1 << 16},)
_LZOP_MAGIC = b"\x89LZO\0\r\n\x1a\n"
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_HEAD, _TAIL = 48, 32
_NEWC: Final = b"070701"


def pack(layer: str, content: bytes) -> bytes:
    """One layer around a file; the same one for the same file."""
    return _PACKERS[layer](content)


def map_of(layer: str, content: bytes) -> Map:
    """Where a sound file of this layer has its own headers; of a member's content nothing is known."""
    size = len(content)
    if layer in ("deb", "archive"):
        return regions_of(content)
    regions = [Region("body", 0, size), Region("head", 0, min(_HEAD, size), ((0, 1), (1, 1), (2, 2), (4, 4)))]
    regions.append(Region("tail", max(0, size - _TAIL), min(_TAIL, size), ((0, 4),)))
    numbers = {size, size - 4, 8, 0x1FE}
    if layer.startswith("bzimage"):
        regions += [
            Region("setup", 0x1F0, 0x78, ((0, 1), (1, 1), (2, 2), (4, 4))),
            Region("lengths", boot_images.PAYLOAD, 8, ((0, 4),)),
            Region("PE", boot_images.PE, 0x100, ((0, 2), (2, 2), (4, 4))),
        ]
        read = boot_images.read(content)
        numbers |= {read.payload, read.length, read.payload + read.length, read.init_size}
    elif layer == "cpio":
        regions = [
            Region("digits", at, 110, ((0, 6), *((6 + 8 * n, 8) for n in range(13)))) for at in _headers(content)
        ]
    elif layer == "tar":
        fields = ((0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
        regions = [Region("tar's digits", at, 512, (*fields, (500, 12))) for at in range(0, size - 511, 512)][:8]
    return Map(tuple(one for one in regions if one.size), tuple(sorted(numbers)), (), ())


def mended(layer: str, content: bytes) -> bytes:
    """The same with checksums that hold in the headers, so that what is wrong there is looked at."""
    data = bytearray(content)
    if layer == "xz" and len(data) > 32:
        data[8:12] = zlib.crc32(data[6:8]).to_bytes(4, "little")
        end = 12 + data[12] * 4
        data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
    elif layer == "lzo" and len(data) > 40:
        end = 9 + 24 + 1 + data[33]
        data[end : end + 4] = zlib.adler32(data[9:end]).to_bytes(4, "big")
    elif layer == "tar":
        for at in range(0, min(len(data) - 511, 4096), 512):
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def _headers(content: bytes) -> list[int]:
    places, at = [], content.find(_NEWC)
    while at >= 0:
        places.append(at)
        at = content.find(_NEWC, at + 6)
    return places


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_XZ_FILTERS)


def _lzma(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_ALONE, filters=_LZMA1)


def _zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(3, write_checksum=True).compress(content)


def _zstd_stream(content: bytes) -> bytes:
    """As a pipe is compressed: in several pieces, of unknown size."""
    packer = zstandard.ZstdCompressor(1, write_content_size=False).compressobj()
    parts = [packer.compress(content[:1000]), packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join((*parts, packer.compress(content[1000:]), packer.flush()))


def _lz4_legacy(content: bytes) -> bytes:
    block = bytes(lz4.block.compress(content, store_size=False))
    return _LZ4_LEGACY_MAGIC + len(block).to_bytes(4, "little") + block


def _lzo(content: bytes) -> bytes:
    header = struct.pack(">HHHBBIIIIB", 0x1030, 0x20A0, 0x0940, 1, 5, 1, 0o100644, 0, 0, 0)
    packer, parts = LZOCompressor(), [_LZOP_MAGIC, header, zlib.adler32(header).to_bytes(4, "big")]
    for at in range(0, len(content), 1 << 14):
        part = content[at : at + (1 << 14)]
        smaller = min(packer.compress(part), part, key=len)
        parts += (struct.pack(">III", len(part), len(smaller), zlib.adler32(part)), smaller)
    return b"".join((*parts, bytes(4)))


def _bzimage(layer: str) -> Callable[[bytes], bytes]:
    def made(content: bytes) -> bytes:
        stream = pack(layer, content)
        if layer != "gzip":
            stream += (len(content) & 0xFFFFFFFF).to_bytes(4, "little")
        return boot_images.make(stream, checksum=layer == "zstd")

    return made


def _cpio(content: bytes) -> bytes:
    """A folder, a link, another file and this one."""
    entries = [("boot", 0o40755, b""), ("boot/link", 0o120777, b"file.ko"), (_OTHER, 0o100644, b"text\n" * 9)]
    entries += [(MEMBER, 0o100644, content), ("TRAILER!!!", 0, b"")]
    out = b""
    for number, (name, mode, data) in enumerate(entries):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += _NEWC + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data + bytes(-len(data) % 4)
    return out


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        link = tarfile.TarInfo("./boot/link")
        link.type, link.linkname = tarfile.SYMTYPE, "file.ko"
        tar.addfile(link)
        for name, data in ((f"./{_OTHER}", b"text\n" * 9), (f"./{MEMBER}", content)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _deb(data: bytes) -> bytes:
    """A package around its data.tar, which is compressed already."""
    name = b"data.tar" + next(end for magic, end in _ENDS.items() if data.startswith(magic))
    return archived((b"debian-binary", b"2.0\n"), (b"control.tar", bytes(1024)), (name, data))


# By the first bytes of a data.tar; anything may be where it was damaged.
_ENDS: Final[Mapping[bytes, bytes]] = MappingProxyType({b"\xfd7zXZ": b".xz", b"\x28\xb5\x2f\xfd": b".zst", b"": b""})


def _early(content: bytes) -> bytes:
    """Another archive in front, as that of the microcode, and zeros."""
    first = _cpio(b"microcode")
    return first + bytes(-len(first) % 512) + content


_PACKERS: Final[Mapping[str, Callable[[bytes], bytes]]] = MappingProxyType(
    {
        "gzip": lambda content: gzip.compress(content, mtime=0),
        "xz": _xz,
        "lzma": _lzma,
        "bzip2": bz2.compress,
        "zstd": _zstd,
        "zstd-stream": _zstd_stream,
        "lz4": lambda content: bytes(lz4.frame.compress(content, block_checksum=True)),
        "lz4-legacy": _lz4_legacy,
        "lzo": _lzo,
        **{
            f"bzimage-{layer}": _bzimage(layer)
            for layer in ("gzip", "xz", "lzma", "bzip2", "zstd", "lz4-legacy", "lzo")
        },
        "cpio": _cpio,
        "early": _early,
        "tar": _tar,
        "deb": _deb,
        "archive": lambda content: archived((b"file.ko/", content)),
    }
)

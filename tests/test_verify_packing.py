"""Content that is right can be packed in a way that no kernel unpacks: `verify` says so.

Kernels are asked by what their source says: lib/xz knows CRC-32 and no CRC-64, kernel/module/decompress.c ends with the
first stream and passes over a name in the header of a .gz alone.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.support import containers
from tests.support.tool import staticcall, succeed

pytestmark = pytest.mark.usefixtures("packers")

FAST: Final = ("--set", "alpha=alpha_fast")
ORIGINAL: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gzip": containers.COMPRESSORS["gzip"],
        "xz": containers.COMPRESSORS["xz-module"],
        "zstd": containers.COMPRESSORS["zstd"],
    }
)


def by(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: containers.through(command, data)


def twice(codec: str) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(containers.through(ORIGINAL[codec], half) for half in (data[:5000], data[5000:]))


def with_fields(flags: int, fields: bytes) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        packed = gzip.compress(data, mtime=0)
        return packed[:3] + bytes([flags]) + packed[4:10] + fields + packed[10:]

    return pack


def with_a_name(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("name", "wb", fileobj=out, mtime=1) as stream:
        stream.write(data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("codec", "pack", "says"),
    [
        ("xz", by("xz", "-c"), "the check 4"),
        ("xz", by("xz", "-c", "--check=sha256"), "the check 10"),
        ("xz", by("xz", "-c", "--check=crc32", "--powerpc", "--lzma2=dict=1MiB"), "the filter 0x5"),
        ("xz", by("xz", "-c", "--delta", "--x86", "--lzma2"), "the check 4 and the filter 0x3 and the filter 0x4"),
        ("xz", twice("xz"), "more than one stream"),
        ("gzip", twice("gzip"), "more than one stream"),
        ("zstd", twice("zstd"), "more than one stream"),
        ("gzip", with_fields(4, b"\2\0xx"), "a field of extras in its header"),
        ("gzip", with_fields(16, b"what\0"), "a comment in its header"),
    ],
)
def test_what_kernels_do_not_unpack_fails_the_proof(
    codec: str, pack: Callable[[bytes], bytes], says: str, program: Path
) -> None:
    original, odd = (program.with_name(name) for name in ("original", "odd"))
    original.write_bytes(containers.through(ORIGINAL[codec], program.read_bytes()))
    succeed("patch", program, *FAST, "--in-place")
    odd.write_bytes(pack(program.read_bytes()))
    outcome = staticcall("verify", original, odd)
    assert outcome.code == 5, outcome
    assert outcome.err.count("\n") == 1
    assert f"{odd}: is packed with {says}" in outcome.err


@pytest.mark.parametrize(
    ("codec", "pack"),
    [
        ("xz", by("xz", "-c", "--check=none", "--lzma2=dict=1MiB")),
        ("xz", by("xz", "-c", "--check=crc32", "-T2", "--block-size=4096", "--lzma2=dict=1MiB")),
        ("xz", lambda data: containers.compressed("xz-module", data) + bytes(8)),
        ("gzip", by("gzip", "-nc1")),
        ("gzip", with_a_name),
        ("zstd", by("zstd", "-qc", "--no-check", "-1")),
    ],
)
def test_what_they_unpack_holds(codec: str, pack: Callable[[bytes], bytes], program: Path) -> None:
    original, other = program.with_name("original"), program.with_name("other")
    original.write_bytes(containers.through(ORIGINAL[codec], program.read_bytes()))
    succeed("patch", program, *FAST, "--in-place")
    other.write_bytes(pack(program.read_bytes()))
    assert "unpacking asks" not in succeed("verify", original, other)


@pytest.mark.parametrize("pack", [by("xz", "-c"), by("xz", "-c", "--delta", "--x86", "--lzma2"), twice("xz")])
def test_what_the_original_has_itself_is_nothing_wrong(pack: Callable[[bytes], bytes], program: Path) -> None:
    original, out = program.with_name("original"), program.with_name("out")
    original.write_bytes(pack(program.read_bytes()))
    succeed("patch", original, *FAST, "-o", out)
    succeed("verify", original, out)


def test_more_memory_is_told(program: Path) -> None:
    original, other = program.with_name("original"), program.with_name("other")
    original.write_bytes(containers.compressed("xz-module", program.read_bytes()))
    other.write_bytes(containers.through(("xz", "-c", "--check=crc32", "--lzma2=dict=8MiB"), program.read_bytes()))
    said = succeed("verify", original, other)
    assert "unpacking asks for 8,388,608 bytes, and of the original for 1,048,576" in said
    assert "unpacking asks" not in succeed("verify", other, original)

"""What is compressed again is what the programs unpack, in the format and with the settings that it had before."""

from __future__ import annotations

import random
import resource
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staticcall.errors import UnsupportedError
from staticcall.model.container import Codec, Compressed
from staticcall.read.containers.codecs import codec_of, unpack
from staticcall.read.inputs import open_input
from staticcall.write.compress import compress
from tests.support.containers import COMPRESSORS, EACH, compressed, through, unpacker
from tests.support.modules import Development

pytestmark = pytest.mark.usefixtures("packers")

_CHANCE = random.Random(2)  # noqa: S311 - no secret
_WORDS = [_CHANCE.randbytes(9) for _ in range(500)]
BEFORE = b"".join(_CHANCE.choices(_WORDS, k=10_000))
AFTER = BEFORE[:1000] + b"rewritten" + BEFORE[1009:]


def layer_of(data: bytes) -> Compressed:
    """How data is compressed, as the reader notes it."""
    codec = codec_of(data)
    assert codec is not None
    return unpack(data, codec, 1 << 28)[1]


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("limit", [None, 1], ids=["usual", "smallest"])
def test_programs_unpack_what_is_compressed_again(name: str, limit: int | None) -> None:
    again = compress(AFTER, layer_of(compressed(name, BEFORE)), limit=limit)

    assert through(unpacker(name), again) == AFTER


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("data", [b"", b"x", bytes(70_000)], ids=["empty", "byte", "zeros"])
def test_no_data_is_special(name: str, data: bytes) -> None:
    assert through(unpacker(name), compress(data, layer_of(compressed(name, BEFORE)))) == data
    assert through(unpacker(name), compress(data, layer_of(compressed(name, b"")))) == data


@pytest.mark.parametrize("name", COMPRESSORS)
def test_settings_are_those_that_it_had(name: str) -> None:
    before = layer_of(compressed(name, BEFORE))
    after = layer_of(compress(AFTER, before))

    changed = {"window"} if before.codec is Codec.ZSTD else set[str]()
    assert [pair for pair in after.settings if pair[0] not in changed] == [
        pair for pair in before.settings if pair[0] not in changed
    ]


@pytest.mark.parametrize("name", EACH)
def test_the_same_gives_the_same(name: str) -> None:
    layer = layer_of(compressed(name, BEFORE))

    assert compress(AFTER, layer) == compress(bytes(bytearray(AFTER)), layer)


@pytest.mark.parametrize("name", ["xz-module", "xz-kernel", "xz-delta", "xz", "bzip2", "bzip2-small"])
def test_what_did_not_change_is_what_the_program_made(name: str) -> None:
    """The programs use the same libraries, and no level is lost in these formats as kernels use them."""
    packed = compressed(name, BEFORE)
    again = compress(BEFORE, layer_of(packed))

    assert again == packed if name != "xz-delta" else len(again) <= len(packed)


@pytest.mark.parametrize("name", ["xz-kernel", "zstd", "zstd-bare", "lz4-legacy", "lz4"])
def test_the_smallest_is_no_larger_than_what_the_program_made(name: str) -> None:
    packed = compressed(name, BEFORE)

    assert len(compress(BEFORE, layer_of(packed), limit=len(packed))) <= len(packed)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EACH), st.lists(st.binary(max_size=300), max_size=30), st.integers(1, 400))
def test_random_data_comes_back(name: str, parts: list[bytes], repeats: int) -> None:
    data = b"".join(parts) * repeats
    layer = LAYERS[name]

    packed = compress(data, layer)

    assert unpack(packed, layer.codec, len(data))[0] == data


LAYERS = {
    "gzip": Compressed(Codec.GZIP, (("header", b"\x1f\x8b\x08\0\0\0\0\0\x02\x03"),)),
    "xz-module": Compressed(Codec.XZ, (("check", 1), ("lzma2", 1 << 20))),
    "zstd": Compressed(Codec.ZSTD, (("checksum", 1), ("content_size", 1), ("window", 1 << 21))),
    "lz4-legacy": Compressed(Codec.LZ4, (("legacy", 1),)),
    "lz4": Compressed(Codec.LZ4, (("legacy", 0), ("block_size", 1 << 16), ("content_checksum", 1))),
    "bzip2": Compressed(Codec.BZIP2, (("level", 9),)),
    "lzma": Compressed(Codec.LZMA, (("dictionary", 1 << 20), ("lc", 3), ("lp", 0), ("pb", 2))),
    "lzo": layer_of(
        bytes.fromhex("894c5a4f000d0a1a0a104020a0094001050300000d000000006b03b2b600000000002c59034600000000")
    ),
}


# What the kernel's own decompressors take


def test_xz_has_one_stream_of_one_block_and_the_check_that_it_had(tmp_path: Path) -> None:
    """Whatever it was: lib/xz checks nothing but CRC-32."""
    packed = compressed("xz-module", BEFORE) + compressed("xz-module", BEFORE)
    again = compress(BEFORE + BEFORE, layer_of(packed), limit=len(packed))

    assert _streams_blocks_check(again, tmp_path) == ("1", "1", "CRC32")
    assert _streams_blocks_check(packed, tmp_path) == ("2", "2", "CRC32")


def _streams_blocks_check(data: bytes, folder: Path) -> tuple[str, str, str]:
    """What xz says of a file."""
    path = folder / "made.xz"
    path.write_bytes(data)
    lines = through(("xz", "--robot", "-l", str(path)), b"").decode().splitlines()
    _, streams, blocks, _, _, _, check, *_ = next(line for line in lines if line.startswith("file")).split("\t")
    return streams, blocks, check


@pytest.mark.parametrize("limit", [None, 1], ids=["usual", "smallest"])
def test_dictionaries_and_windows_do_not_grow(limit: int | None) -> None:
    large = BEFORE * 12
    xz = layer_of(compressed("xz-module", large))
    bare = layer_of(compressed("zstd-bare", large))

    assert dict(layer_of(compress(large, xz, limit=limit)).settings)["lzma2"] == 1 << 20
    assert _int(layer_of(compress(large, bare, limit=limit)), "window") <= _int(bare, "window")


def _int(layer: Compressed, name: str) -> int:
    value = dict(layer.settings)[name]
    assert isinstance(value, int)
    return value


def test_legacy_blocks_are_of_eight_mebibytes() -> None:
    """lib/decompress_unlz4.c has room for no more of each."""
    data = (BEFORE * 200)[: (16 << 20) + 1]
    packed = compress(data, Compressed(Codec.LZ4, (("legacy", 1),)))

    at, sizes = 4, []
    while at < len(packed):
        (size,) = struct.unpack_from("<I", packed, at)
        sizes.append(size)
        at += 4 + size
    assert len(sizes) == 3
    assert at == len(packed)
    assert through(("lz4", "-dqc"), packed) == data


# Headers


def test_name_and_time_of_gzip_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "module.ko"
    path.write_bytes(BEFORE)
    packed = through(("gzip", "-c9", str(path)), b"")
    again = compress(AFTER, layer_of(packed))

    assert again[: 10 + len("module.ko") + 1] == packed[: 10 + len("module.ko") + 1]
    assert b"module.ko\0" in again[:30]


def test_name_and_time_of_lzop_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "module.ko"
    path.write_bytes(BEFORE)
    packed = through(("lzop", "-c", str(path)), b"")
    again = compress(AFTER, layer_of(packed))

    assert b"module.ko" in again[:60]
    assert through(("lzop", "-dc"), again) == AFTER


def test_filters_that_cannot_be_given_again_are_refused() -> None:
    packed = through(("xz", "-c", "--sparc", "--lzma2"), BEFORE)

    assert unpack(packed, Codec.XZ, len(BEFORE))[0] == BEFORE
    with pytest.raises(UnsupportedError, match="filter-0x9"):
        compress(BEFORE, layer_of(packed))


# Debian's own


@pytest.mark.kernel
def test_debians_modules_come_out_as_debian_compressed_them(development: Development) -> None:
    """Every so many of them; where nothing was changed, nothing changes."""
    archives = sorted(development.modules.rglob("*.ko.xz"))
    for archive in archives[:: len(archives) // 12]:
        with open_input(archive) as (source, layers):
            data = source.whole()
        (layer,) = layers
        assert isinstance(layer, Compressed)

        assert data == through(("xz", "-dc"), archive.read_bytes())
        assert compress(data, layer) == archive.read_bytes()


@pytest.mark.parametrize("codec", [Codec.XZ, Codec.LZMA])
def test_a_dictionary_that_is_only_promised_takes_no_memory(codec: Codec) -> None:
    name = "lzma2" if codec is Codec.XZ else "dictionary"
    layer = Compressed(codec, (("check", 1), (name, 1 << 30)) if codec is Codec.XZ else ((name, 1 << 30),))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # Ten times the dictionary would be needed.
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), limits[1]))
    try:
        again = compress(AFTER, layer)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)

    assert through(unpacker(codec.value), again) == AFTER

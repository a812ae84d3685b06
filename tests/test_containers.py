"""What programs packed is read as if it were not packed; what is damaged is one line, and what is a bomb ends early."""

from __future__ import annotations

import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staticcall.errors import MalformedError, StaticcallError, UnsupportedError
from staticcall.model.container import Codec, Compressed
from staticcall.read.containers import standard
from staticcall.read.containers.codecs import codec_of, peek
from staticcall.read.containers.codecs import unpack as unpack_codec
from staticcall.read.inputs import open_input
from tests.support.containers import COMPRESSORS, EACH, compressed, through
from tests.support.programs import Builder
from tests.support.tool import Json, report, staticcall, staticcall_process

pytestmark = pytest.mark.usefixtures("packers")

_CHANCE = random.Random(1)  # noqa: S311 - no secret
_WORDS = [_CHANCE.randbytes(9) for _ in range(500)]
# As much as code does it repeats itself.
MODULE = b"".join(_CHANCE.choices(_WORDS, k=5000)) + bytes(3000)


@pytest.fixture(scope="module")
def elf(built: Builder) -> Path:
    return built("calls", "pie")


def inside(path: Path) -> bytes:
    with open_input(path) as (source, _):
        return source.whole()


def layers_of(path: Path) -> list[str]:
    with open_input(path) as (_, layers):
        return [layer.label for layer in layers]


def without_path(image: Json) -> Json:
    return {name: value for name, value in image.items() if name not in ("path", "container")}


def put(folder: Path, data: bytes, name: str = "packed") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# Reading


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_a_program_compressed_is_read(name: str, elf: Path, tmp_path: Path) -> None:
    packed = put(tmp_path, compressed(name, elf.read_bytes()))

    assert inside(packed) == elf.read_bytes()
    assert layers_of(packed) == [name.split("-", maxsplit=1)[0]]


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [0, 1, 2_500_000])
def test_no_size_is_special(name: str, size: int, tmp_path: Path) -> None:
    data = (MODULE * 170)[:size]

    assert inside(put(tmp_path, compressed(name, data))) == data


def test_a_legacy_file_has_many_blocks(tmp_path: Path) -> None:
    data = (MODULE * 400)[: (16 << 20) + 5]

    assert inside(put(tmp_path, compressed("lz4-legacy", data))) == data


@pytest.fixture(params=["lzma_mt", "lzma"])
def xz_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The decoder for xz: the one of the extra `fast`, and Python's own where that is not installed."""
    decoder: str = request.param
    if decoder == "lzma":
        monkeypatch.setitem(sys.modules, "lzma_mt", None)
    return decoder


def test_each_decoder_of_xz_reads_the_same(xz_of: str, tmp_path: Path) -> None:
    data = (MODULE * 60)[:2_500_000]
    packed = compressed("xz", data)

    assert type(standard.decoder(Codec.XZ)).__module__.lstrip("_").startswith(xz_of)
    assert inside(put(tmp_path, packed)) == data
    assert inside(put(tmp_path, packed + bytes(8) + compressed("xz-kernel", data))) == data + data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "ends inside of its xz data (offset {short:#x}), the file is truncated"),
        (lambda data: data[: len(data) // 2], "ends inside of its xz data (offset {half:#x}), the file is truncated"),
        (
            lambda data: data[:40] + bytes([data[40] ^ 0x10]) + data[41:],
            "its xz data cannot be unpacked: Corrupt input data (offset 0x0), the file is damaged",
        ),
    ],
    ids=["no index", "half", "flipped"],
)
def test_each_decoder_of_xz_says_the_same_of_damage(
    damage: Callable[[bytes], bytes], message: str, xz_of: str, tmp_path: Path
) -> None:
    data = compressed("xz", MODULE * 10)
    path = put(tmp_path, damage(data))

    with pytest.raises(MalformedError) as caught:
        inside(path)
    assert message.format(short=len(data) - 20, half=len(data) // 2) in str(caught.value), xz_of


@pytest.mark.parametrize("name", EACH)
def test_a_report_on_a_compressed_file_is_that_on_the_file(name: str, elf: Path, tmp_path: Path) -> None:
    packed = put(tmp_path, compressed(name, elf.read_bytes()))

    assert without_path(report(packed)) == without_path(report(elf))
    assert (report(packed)["path"], report(packed)["container"]) == (str(packed), layers_of(packed))


def test_the_content_says_what_it_is_and_not_the_name(elf: Path, tmp_path: Path) -> None:
    packed = put(tmp_path, compressed("zstd", elf.read_bytes()), "module.ko.xz")
    plain = put(tmp_path, elf.read_bytes(), "program.gz")

    assert layers_of(packed) == ["zstd"]
    assert layers_of(plain) == []


def test_layers_are_taken_off_one_after_the_other(elf: Path, tmp_path: Path) -> None:
    packed = put(tmp_path, compressed("gzip", compressed("xz", compressed("lz4", elf.read_bytes()))))

    assert inside(packed) == elf.read_bytes()
    assert layers_of(packed) == ["gzip", "xz", "lz4"]


def test_too_many_layers_are_refused(elf: Path, tmp_path: Path) -> None:
    data = elf.read_bytes()
    for _ in range(9):
        data = compressed("zstd-bare", data)

    with pytest.raises(UnsupportedError, match="packed more than 8 times"):
        inside(put(tmp_path, data))


@pytest.mark.parametrize("name", EACH)
def test_streams_behind_each_other_are_one_file(name: str, tmp_path: Path) -> None:
    data = compressed(name, MODULE) + compressed(name, b"") + compressed(name, b"more")

    assert inside(put(tmp_path, data)) == MODULE + b"more"


@pytest.mark.parametrize("name", ["gzip", "xz", "bzip2"])
def test_zeros_behind_are_padding(name: str, tmp_path: Path) -> None:
    packed = put(tmp_path, compressed(name, MODULE) + bytes(512))

    assert inside(packed) == MODULE


def test_padding_has_a_size_that_xz_takes(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="padding"):
        inside(put(tmp_path, compressed("xz", MODULE) + bytes(6)))


@pytest.mark.parametrize("name", EACH)
def test_something_else_behind_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedError):
        inside(put(tmp_path, compressed(name, MODULE) + b"something else"))


def test_frames_that_are_to_be_skipped_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x5a\x2a\x4d\x18\x04\0\0\0abcd"
    packed = put(tmp_path, compressed("zstd", MODULE) + skipped + compressed("zstd", b"more"))

    assert inside(packed) == MODULE + b"more"
    assert through(("zstd", "-dqc"), packed.read_bytes()) == MODULE + b"more"


# Boot images, put together as Documentation/arch/x86/boot.rst has it

_SETUP = 2 * 512
_BEFORE = 64


def boot_image(payload: bytes, unpacked_size: int, codec: str) -> bytes:
    """The fewest fields that make one; the build puts the size behind all payloads but those of gzip, which have it."""
    size = b"" if codec == "gzip" else unpacked_size.to_bytes(4, "little")
    code = bytes(_BEFORE) + payload + size
    code += bytes(-len(code) % 16)
    header = bytearray(_SETUP)
    header[0x1F1] = 1
    struct.pack_into("<I", header, 0x1F4, len(code) // 16)
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x20F)
    struct.pack_into("<II", header, 0x248, _BEFORE, len(payload) + len(size))
    return bytes(header) + code


@pytest.mark.parametrize("name", sorted(set(EACH) - {"lz4"}))
def test_the_kernel_in_a_boot_image_is_read(name: str, elf: Path, tmp_path: Path) -> None:
    payload = compressed(name, elf.read_bytes())
    image = put(tmp_path, boot_image(payload, elf.stat().st_size, name))

    assert inside(image) == elf.read_bytes()
    assert layers_of(image) == [f"bzImage:{name.split('-', maxsplit=1)[0]}"]
    packed = put(tmp_path, compressed("xz", image.read_bytes()), "image.xz")
    assert layers_of(packed) == ["xz", f"bzImage:{name.split('-', maxsplit=1)[0]}"]


@pytest.mark.parametrize("name", ["xz-module", "zstd", "lz4-legacy", "lzo"])
@pytest.mark.parametrize("wrong", [-1, 1, 1 << 20])
def test_a_payload_of_another_size_than_it_says_is_refused(name: str, wrong: int, elf: Path, tmp_path: Path) -> None:
    payload = compressed(name, elf.read_bytes())
    image = put(tmp_path, boot_image(payload, elf.stat().st_size + wrong, name))

    outcome = staticcall("report", image)

    assert outcome.code == 3
    assert "unpacks to" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("name", ["gzip", "zstd", "lz4-legacy"])
def test_a_damaged_boot_image_is_one_line(name: str, elf: Path, tmp_path: Path) -> None:
    chance = random.Random(name)  # noqa: S311 - no secret
    data = boot_image(compressed(name, elf.read_bytes()), elf.stat().st_size, name)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[chance.choice((chance.randrange(0x1F0, 0x264), chance.randrange(_SETUP, len(data))))] ^= 0xFF
        outcome = staticcall("report", put(tmp_path, bytes(damaged)))
        assert outcome.code in (0, 1, 3)
        assert outcome.err.count("\n") == (outcome.code == 3)
    for size in (0x202, 0x206, 0x250, _SETUP, _SETUP + _BEFORE + 9, len(data) - 100):
        assert staticcall("report", put(tmp_path, data[:size])).code == 3


# Settings


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("xz-module", {"check": 1, "lzma2": 1 << 20, "lc": 3, "lp": 0, "pb": 2}),
        ("xz-kernel", {"check": 1, "x86": 0, "lzma2": 32 << 20, "lc": 3, "lp": 0, "pb": 2}),
        ("xz-delta", {"check": 0, "delta": 3, "lzma2": 1 << 20, "lc": 0, "lp": 2, "pb": 2}),
        ("zstd-bare", {"checksum": 0, "content_size": 0, "single_segment": 0, "window": 1 << 19}),
        ("lz4-legacy", {"legacy": 1}),
        (
            "lz4-frame",
            {
                "legacy": 0,
                "block_size": 1 << 16,
                "block_linked": 1,
                "block_checksum": 1,
                "content_size": 0,  # of what comes through a pipe it is not known
                "content_checksum": 1,
            },
        ),
        ("bzip2-small", {"level": 1}),
        ("lzma", {"dictionary": 64 << 20, "lc": 3, "lp": 0, "pb": 2}),
    ],
)
def test_settings_are_those_that_the_program_was_given(name: str, wanted: dict[str, int], tmp_path: Path) -> None:
    with open_input(put(tmp_path, compressed(name, MODULE * 2))) as (_, layers):
        (layer,) = layers

    assert isinstance(layer, Compressed)
    assert dict(layer.settings) == wanted


# Damage


@pytest.mark.parametrize("name", COMPRESSORS)
def test_no_truncated_file_is_read(name: str, tmp_path: Path) -> None:
    data = compressed(name, MODULE[-4000:])
    # The last bytes of an .xz or .lz4 file are as needed as the first ones; a legacy file may end after any block.
    ends = [*range(20, 60), *range(60, len(data), 97), len(data) - 4, len(data) - 1]
    for end in ends:
        cut = data[:end]
        codec = codec_of(cut)
        assert codec is not None
        with pytest.raises(StaticcallError, match=r"truncated|damaged"):
            unpack_codec(cut, codec, 1 << 20)
    assert staticcall("report", put(tmp_path, data[:-1])).err.count("\n") == 1


@pytest.mark.parametrize("name", COMPRESSORS)
def test_damage_is_one_error_or_none(name: str) -> None:
    """What has no checksum may give something else; nothing gives another exception."""
    chance = random.Random(name)  # noqa: S311 - no secret
    data = compressed(name, MODULE[-4000:])
    refusals = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 3))):
            damaged[chance.randrange(4, len(data))] = chance.randrange(256)
        codec = codec_of(bytes(damaged))
        if codec is None:
            continue
        peek(bytes(damaged), codec)
        try:
            unpack_codec(bytes(damaged), codec, 1 << 24)
        except StaticcallError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([codec[:6] for codec in (b"\x1f\x8b\x08\0\0\0", b"\xfd7zXZ\0", b"BZh9\x31\x41")]), st.binary())
def test_what_only_begins_like_a_compressed_file_is_refused(magic: bytes, rest: bytes) -> None:
    codec = codec_of(magic)
    assert codec is not None

    with pytest.raises(StaticcallError):
        unpack_codec(magic + rest, codec, 1 << 20)


def test_text_and_tables_are_not_mistaken_for_lzma() -> None:
    assert codec_of(b"] is a text that begins with a bracket") is None
    assert codec_of(bytes(64)) is None
    assert codec_of(b"\x5d" + bytes(63)) is None


# Bombs


@pytest.mark.parametrize("name", ["xz", "zstd"])
def test_a_bomb_ends_in_a_sentence_and_without_the_memory(name: str, tmp_path: Path) -> None:
    bomb = put(tmp_path, compressed(name, bytes(32 << 20)) * 10)
    run = subprocess.run(
        [sys.executable, "-m", "staticcall", "report", bomb],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )

    assert run.returncode == 3
    assert run.stderr.startswith(f"staticcall: {bomb}: unpacks to more than 268,435,456 bytes")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("name", EACH)
def test_the_limit_is_where_it_is_said_to_be(name: str) -> None:
    data = compressed(name, bytes(100_000))
    codec = codec_of(data)
    assert codec is not None

    assert unpack_codec(data, codec, 100_000)[0] == bytes(100_000)
    with pytest.raises(UnsupportedError, match="more than 99,999 bytes"):
        unpack_codec(data, codec, 99_999)


def test_streams_without_end_are_refused() -> None:
    data = compressed("bzip2", b"") * 70_000
    codec = codec_of(data)
    assert codec is not None

    with pytest.raises(UnsupportedError, match="streams"):
        unpack_codec(data, codec, 1 << 20)


@pytest.mark.parametrize("name", ["lzma", "zstd"])
def test_a_dictionary_larger_than_all_memory_is_refused(name: str, tmp_path: Path) -> None:
    if name == "lzma":
        data = through(("lzma", "-c", "-0"), MODULE)
        large = data[:1] + (3 << 30).to_bytes(4, "little") + data[5:]
    else:
        large = through(("zstd", "-qc", "--ultra", "--long=31"), MODULE)

    outcome = staticcall_process("report", put(tmp_path, large))

    assert outcome.code == 3
    assert outcome.err.count("\n") == 1
    assert "smaller dictionary" in outcome.err
    assert "damaged" not in outcome.err


# Errors and changes


def test_errors_name_the_outer_file(tmp_path: Path) -> None:
    packed = put(tmp_path, compressed("xz", b"\x7fELF" + bytes(8)))

    outcome = staticcall("report", packed)

    assert outcome.code == 3
    assert outcome.err.startswith(f"staticcall: {packed}: ends inside the ELF header in what is unpacked (offset 0xc)")


def test_a_change_of_the_outer_file_is_noticed(elf: Path, tmp_path: Path) -> None:
    packed = put(tmp_path, compressed("xz", elf.read_bytes()))

    with open_input(packed) as (source, _):
        packed.write_bytes(compressed("xz", elf.read_bytes()[:-1]))
        with pytest.raises(StaticcallError, match="was changed"):
            source.check_unchanged()


def test_a_plain_file_is_not_read_as_a_whole(elf: Path, tmp_path: Path) -> None:
    """It may be larger than any memory: a hole of a terabyte behind it costs nothing."""
    large = put(tmp_path, elf.read_bytes())
    with large.open("r+b") as file:
        file.truncate(1 << 40)

    assert without_path(report(large)) == without_path(report(elf))


@pytest.mark.parametrize(("name", "wanted"), [("", ()), ("xz", ("lzma",)), ("gzip", ()), ("lz4-legacy", ("lz4",))])
def test_only_the_codec_that_is_needed_is_loaded(name: str, wanted: tuple[str, ...], elf: Path, tmp_path: Path) -> None:
    """Each takes longer to load than most modules take to be read."""
    packed = put(tmp_path, compressed(name, elf.read_bytes()) if name else elf.read_bytes())
    code = (
        "import sys; from staticcall.cli.entry import run; run(['report', '--quiet', sys.argv[1]]);"
        "print(*sorted({'zstandard', 'lz4', 'lzallright', 'tarfile', 'lzma', 'numpy'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code, packed], capture_output=True, text=True, check=True)

    assert set(run.stdout.split()) == set(wanted)

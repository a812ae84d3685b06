"""The proof of a boot image: what a patched one may not have, each made from one that is right."""

from __future__ import annotations

import struct
import subprocess

import pytest

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.bzimage import prove_envelope
from tests.support import boot_images as boot
from tests.test_bzimage import NEW, OLD, rewritten


@pytest.fixture(scope="module")
def plain(packers: None) -> bytes:  # noqa: ARG001 - it only looks for programs
    return boot.make(boot.payload_of("xz", OLD))


def refuted(image: bytes, wrong: bytes) -> str:
    with pytest.raises(VerificationError) as refusal:
        prove_envelope(image, wrong)
    return str(refusal.value)


@pytest.mark.parametrize("where", ["dos", "pe", "section", "setup", "head", "decompressor", "filler"])
def test_a_byte_that_belongs_to_nothing_may_not_differ(plain: bytes, where: str) -> None:
    result = bytearray(rewritten(plain, "xz"))
    at = {
        "dos": 0x30,
        "pe": boot.PE + 8,
        "section": boot.DATA_SECTION + 8,
        "setup": boot.START - 1,
        "head": boot.START + 5,
        "decompressor": plain.index(b"decompressor"),
        "filler": len(plain) - 100,
    }[where]
    result[at] ^= 1
    # The CRC follows, so that only the byte itself is in the way.
    fixed = bytes(result[:-4]) + struct.pack("<I", _crc(result[:-4]))

    assert refuted(plain, fixed)


def _crc(data: bytes | bytearray) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (boot.PAYLOAD + 4, "unpack|outside|end"),
        (boot.INIT_SIZE, "init_size"),
        (-4, "CRC"),
        (boot.CHECKSUM, "checksum"),
    ],
)
def test_what_has_to_follow_is_held_against_the_payload(plain: bytes, field: int, says: str) -> None:
    result = bytearray(rewritten(plain, "xz"))
    at = field % len(result)
    (value,) = struct.unpack_from("<I", result, at)
    struct.pack_into("<I", result, at, value - 4 & 0xFFFFFFFF)

    with pytest.raises(VerificationError, match=says):
        prove_envelope(plain, bytes(result))


@pytest.mark.parametrize("lengths", [0, 1])
@pytest.mark.parametrize("pages", [-1, 1 << 16])
def test_the_memory_is_what_the_stream_needs_wherever_its_payload_ends(packers: None, lengths: int, pages: int) -> None:  # noqa: ARG001 - it only looks for programs
    image = boot.make(boot.payload_of("xz", OLD), lengths=lengths, crc=False)
    content = NEW.ljust(len(OLD), b"\0")
    result = bytearray(rewritten(image, "xz", content))
    memory = boot.read(bytes(result)).init_size
    assert memory > boot.read(image).init_size
    assert prove_envelope(image, bytes(result)) == (OLD, content)
    struct.pack_into("<I", result, boot.INIT_SIZE, memory + 4096 * pages)

    assert f"init_size is {memory + 4096 * pages} and has to be {memory}" in refuted(image, bytes(result))


def test_the_decompressors_lengths_have_to_follow(plain: bytes) -> None:
    result, before = rewritten(plain, "xz"), boot.read(plain)
    wrong = result.replace(struct.pack("<I", boot.read(result).length) + struct.pack("<I", len(NEW)), bytes(8))

    assert "the decompressor has other lengths" in refuted(plain, wrong)
    assert boot.read(wrong).length < before.length


def test_a_payload_that_claims_to_become_more_than_any_kernel_is_not_unpacked(plain: bytes) -> None:
    stream = boot.compress("xz", OLD)

    assert "which no kernel does" in refuted(plain, boot.make(stream + struct.pack("<I", 0x7F000000)))


def test_rubbish_behind_the_payload_is_found(plain: bytes) -> None:
    result, room = bytearray(rewritten(plain, "xz")), boot.read(plain)
    result[room.payload + room.length - 1] = 1

    assert "something else stands behind the payload" in refuted(plain, bytes(result))


def test_the_old_signature_on_a_new_image_is_found() -> None:
    payload = boot.payload_of("xz", OLD)
    image = boot.make(payload, signed=True)
    result = bytearray(rewritten(image, "xz", strip=True))
    struct.pack_into("<II", result, boot.CERTIFICATES, len(result), 64)

    assert "the signature of the original" in refuted(image, bytes(result) + image[-64:])


# Streams that a library unpacks and the kernel does not


def _lzo_block(size: int, data: bytes) -> bytes:
    """A block as lzop makes it of this data, with another size in it than it has."""
    stream = boot.compress("lzo", data)
    return struct.pack(">I", size) + stream[_lzo_header(stream, data) + 4 : -4]


def _lzo_header(stream: bytes, data: bytes) -> int:
    return stream.index(struct.pack(">I", len(data)))


def _foreign(kind: str) -> bytes:
    half = len(OLD) // 2
    first, second = OLD[:half], OLD[half:]
    if kind == "lz4-short-block":
        return boot.compress("lz4", first) + boot.compress("lz4", second)[4:]
    if kind == "lz4-end-mark":
        return boot.compress("lz4", OLD) + bytes(8)
    if kind == "lzo-other-sizes":
        stream = boot.compress("lzo", first)
        header = stream[: _lzo_header(stream, first)]
        return header + _lzo_block(half + 9, first) + _lzo_block(len(second) - 9, second) + bytes(4)
    if kind == "gzip-comment":
        stream = boot.compress("gzip", OLD)
        return stream[:3] + b"\x10" + stream[4:10] + b"comment\0" + stream[10:]
    program = ("xz", "-c", "--check=crc64", "--lzma2=dict=1MiB")
    return subprocess.run(program, input=OLD, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("lz4-short-block", "not as long as the kernel expects"),
        ("lz4-end-mark", "something stands behind the payload"),
        ("lzo-other-sizes", "not as long as it says|does not unpack"),
        ("gzip-comment", "does not pass over"),
        ("xz-crc64", "a check that the kernel does not know"),
    ],
)
def test_a_stream_that_only_libraries_unpack_is_not_sound(packers: None, kind: str, says: str) -> None:  # noqa: ARG001 - it only looks for programs
    codec, stream = kind.partition("-")[0], _foreign(kind)
    image = boot.make(stream if codec == "gzip" else stream + struct.pack("<I", len(OLD)))

    with pytest.raises(MalformedError, match=f"is no sound boot image: .*({says})"):
        prove_envelope(image, image)

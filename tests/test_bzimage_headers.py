"""Damaged and made-up headers of boot images: each is told with its place, and none makes anything worse than that."""

from __future__ import annotations

import struct

import pytest

from staticcall.errors import MalformedError, StaticcallError, UnsupportedError
from staticcall.read.containers.bzimage import find_payload
from staticcall.verify.bzimage import prove_envelope
from staticcall.write.bzimage import rebuild, strip_pe_signature
from tests.support import boot_images as boot
from tests.test_bzimage import NEW, OLD, layer_of, rewritten


@pytest.fixture(scope="module")
def plain(packers: None) -> bytes:  # noqa: ARG001 - it only looks for programs
    return boot.make(boot.payload_of("xz", OLD))


def test_other_files_are_no_boot_images() -> None:
    for data in (b"", b"MZ", bytes(4096), b"\x7fELF" + bytes(600)):
        assert find_payload(data) is None


@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        (boot.VERSION, 0x0207, UnsupportedError, "boot protocol 2.07"),
        (boot.SYSSIZE, 0xFFFFFFFF, MalformedError, "setup header promises"),
        (boot.SYSSIZE, 1, MalformedError, "runs past the code"),
        (boot.PAYLOAD, 0, UnsupportedError, "without a payload"),
        (boot.PAYLOAD, 0xFFFFFFF0, MalformedError, "runs past the code"),
        (boot.PAYLOAD, 0x204, UnsupportedError, "no known compression"),
        (boot.PAYLOAD + 4, 0, UnsupportedError, "without a payload"),
        (boot.PAYLOAD + 4, 0xFFFFFFFF, MalformedError, "runs past the code"),
    ],
)
def test_a_header_that_contradicts_the_file_is_told_with_its_place(
    plain: bytes, field: int, value: int, error: type[StaticcallError], says: str
) -> None:
    data = bytearray(plain)
    if field == boot.VERSION:
        struct.pack_into("<H", data, field, value)
    else:
        struct.pack_into("<I", data, field, value)

    with pytest.raises(error, match=says) as refusal:
        find_payload(bytes(data))
    assert refusal.value.offset is not None


def test_certificates_in_the_code_are_not_cut_off_with_it(plain: bytes) -> None:
    payload, stream = boot.read(plain).payload, boot.compress("xz", NEW)
    for start in (payload, len(plain) - 64, boot.CHECKSUM):
        data = bytearray(plain)
        struct.pack_into("<II", data, boot.CERTIFICATES, start, len(data) - start)
        image = bytes(data)

        with pytest.raises(MalformedError, match="not behind the code"):
            rebuild(image, layer_of(image), stream, len(NEW), strip_signature=True)
        with pytest.raises(MalformedError, match="not behind the code"):
            strip_pe_signature(image)


@pytest.mark.parametrize("place", ["end", "setup", "overlap"])
def test_pe_headers_are_in_front_of_the_setup_header(packers: None, place: str) -> None:  # noqa: ARG001 - it only looks for programs
    sound = boot.make(boot.payload_of("xz", OLD), mapped=True)
    headers = sound[boot.PE : boot.DATA_SECTION + 40]
    data = bytearray(sound)
    if place == "overlap":
        struct.pack_into("<H", data, boot.PE + 20, 100)
    else:
        at = len(data) if place == "end" else boot.SYSSIZE - (boot.CHECKSUM - boot.PE)
        data[at : at + len(headers) if place == "end" else at + 4] = headers if place == "end" else headers[:4]
        struct.pack_into("<I", data, 0x3C, at)
        struct.pack_into("<H", data, at + boot.OPTIONAL - boot.PE, 0x20B)
    image = bytes(data)

    with pytest.raises(MalformedError, match="the PE header"):
        rebuild(image, layer_of(image), boot.compress("xz", NEW), len(NEW), strip_signature=True)
    with pytest.raises(StaticcallError):
        prove_envelope(image, rewritten(sound, "xz"))


FIELDS = (0, 0x3C, *range(boot.PE, boot.DATA_SECTION + 40, 4), 0x1F1, 0x1F4, 0x1FE, 0x202, 0x206, 0x248, 0x24C, 0x260)


@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], ids=hex)
def test_no_header_makes_anything_worse_than_an_error(plain: bytes, value: int) -> None:
    payload = boot.compress("xz", NEW)
    for field in FIELDS:
        data = bytearray(plain)
        struct.pack_into("<I", data, field, value)
        _survives(bytes(data), plain, payload)


def test_no_length_makes_anything_worse_than_an_error(plain: bytes) -> None:
    payload = boot.compress("xz", NEW)
    for size in (*range(0, boot.START, 37), *range(boot.START, len(plain), 997)):
        _survives(plain[:size], plain, payload)


def _survives(data: bytes, sound: bytes, stream: bytes) -> None:
    try:
        layer = find_payload(data)
        if layer is not None:
            rebuild(data, layer, stream, len(NEW), strip_signature=True)
    except StaticcallError:
        pass
    for before, after in ((data, sound), (sound, data)):
        try:
            prove_envelope(before, after)
        except StaticcallError:
            continue

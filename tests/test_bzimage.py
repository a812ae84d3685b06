"""A bzImage gets another payload, and nothing else of it changes but what counts and sums.

Small boot images are made here, with what the programs themselves compress, and read here again. Debian's are the
judges of the sums: their CRC is from the kernel's build, their PE checksum from who signed them.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from random import Random

import pytest

from staticcall.errors import UnsafeError, UnsupportedError
from staticcall.model.container import BzImage
from staticcall.read.containers.bzimage import find_payload
from staticcall.read.containers.layers import peel
from staticcall.verify.bzimage import prove_envelope
from staticcall.write.bzimage import pe_signature, rebuild, strip_pe_signature
from tests.support import boot_images as boot
from tests.support import bzimage

CODECS = list(boot.COMPRESSORS)
# Half of it cannot be compressed, and of that the new kernel has less.
OLD = Random(1).randbytes(30_000) + b"".join(b"%d functions\n" % (number * number) for number in range(5_000))  # noqa: S311 - no secret
NEW = bytes(20_000) + OLD[20_000:]
GROWN = NEW + bytes(4)


def layer_of(image: bytes) -> BzImage:
    layer = find_payload(image)
    assert layer is not None
    return layer


def rewritten(image: bytes, codec: str, content: bytes = NEW, *, strip: bool = False) -> bytes:
    stream = boot.compress(codec, content)
    return rebuild(image, layer_of(image), stream, len(content), strip_signature=strip)


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest, packers: None) -> str:  # noqa: ARG001 - it only looks for programs
    return str(request.param)


@pytest.fixture(scope="module")
def image(codec: str) -> bytes:
    return boot.make(boot.payload_of(codec, OLD))


@pytest.fixture
def plain(packers: None) -> bytes:  # noqa: ARG001 - it only looks for programs
    return boot.make(boot.payload_of("xz", OLD))


def test_the_payload_is_found(codec: str, image: bytes) -> None:
    layer, fields = layer_of(image), boot.read(image)

    assert (layer.offset, layer.size, layer.unpacked_size) == (fields.payload, fields.length, len(OLD))
    assert layer.payload.codec.value == codec
    assert image[layer.offset :][: layer.stream_size] == boot.compress(codec, OLD)


def test_a_new_payload_stands_where_the_old_one_was(codec: str, image: bytes, tmp_path: Path) -> None:
    result = rewritten(image, codec)
    before, after, payload = boot.read(image), boot.read(result), boot.payload_of(codec, NEW)
    room = result[before.payload : before.payload + before.length]

    assert room == payload.ljust(before.length, b"\0")
    assert (after.payload, after.length) == (before.payload, len(payload))
    # As the decompressor is told.
    assert image.count(struct.pack("<II", before.length, len(OLD))) == 1
    assert result.count(struct.pack("<II", after.length, len(NEW))) == 1
    assert boot.crc_holds(result)
    assert len(result) == len(image)
    unpacked = bzimage.unpack(boot.write(tmp_path / "vmlinuz", result), tmp_path / "vmlinux.bin.all")
    assert unpacked.read_bytes() == NEW
    assert prove_envelope(image, result) == (OLD, NEW)


def test_a_larger_kernel_in_it_is_told_to_the_decompressor(codec: str, image: bytes) -> None:
    result = rewritten(image, codec, GROWN)

    assert result.count(struct.pack("<II", boot.read(result).length, len(GROWN))) == 1
    assert prove_envelope(image, result) == (OLD, GROWN)


@pytest.mark.parametrize("content", [NEW, GROWN], ids=["same-size", "larger"])
def test_a_shorter_payload_gets_the_memory_that_the_build_would_have_given_it(
    codec: str, image: bytes, content: bytes
) -> None:
    result = rewritten(image, codec, content)
    # arch/x86/boot/header.S: the decompressor itself, and so much in front of it that it can unpack in place.
    own = len(image) + boot.BSS - boot.START
    packed = boot.read(result).length
    needed = len(content) + (len(content) >> 8) + 131072 - packed

    assert boot.read(result).init_size == own + (needed + 4095) // 4096 * 4096
    assert boot.read(result).image_size == boot.read(image).image_size


def test_where_the_firmware_gives_the_memory_it_gives_more(plain: bytes) -> None:
    image = boot.make(boot.payload_of("xz", OLD), mapped=True)
    result = rewritten(image, "xz", NEW + bytes(100_000))
    growth = boot.read(result).init_size - boot.read(image).init_size
    before, after = (struct.unpack_from("<II", data, boot.DATA_SECTION + 8) for data in (image, result))

    assert growth > 0
    assert boot.read(result).image_size - boot.read(image).image_size == growth
    assert after == (before[0] + growth, before[1])
    assert prove_envelope(image, result)[1] == NEW + bytes(100_000)
    assert boot.read(rewritten(plain, "xz", NEW + bytes(100_000))).image_size == boot.read(plain).image_size


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
def test_the_same_payload_gives_the_same_file(codec: str, signed: bool, checksum: bool) -> None:
    image = boot.make(boot.payload_of(codec, OLD), signed=signed, checksum=checksum)

    assert rewritten(image, codec, OLD) == image
    assert prove_envelope(image, image) == (OLD, OLD)


def test_a_payload_without_room_is_refused_with_the_numbers(codec: str, image: bytes) -> None:
    stream = boot.compress(codec, OLD) + b"more"
    room = boot.read(image).length

    with pytest.raises(UnsafeError, match=rf"has {room + 4:,} bytes.* room for {room:,}, so 4 are missing") as refusal:
        rebuild(image, layer_of(image), stream, len(OLD), strip_signature=False)
    assert refusal.value.code == "payload-room"


# Decompressors whose lengths are not found


@pytest.mark.parametrize("lengths", [0, 2])
def test_unknown_lengths_stay_and_zeros_fill_the_room(codec: str, lengths: int) -> None:
    image = boot.make(boot.payload_of(codec, OLD), lengths=lengths)
    content = NEW.ljust(len(OLD), b"\0")
    stream = boot.compress(codec, content)
    if codec in ("gzip", "lz4"):
        with pytest.raises(UnsafeError, match="in no place where they could be changed") as refusal:
            rewritten(image, codec, content)
        assert refusal.value.code == "payload-lengths"
        return
    result = rewritten(image, codec, content)
    before, after = boot.read(image), boot.read(result)
    room = result[after.payload : after.payload + after.length]

    assert (after.payload, after.length) == (before.payload, before.length)
    assert room.startswith(stream)
    assert not any(room[len(stream) : -4])
    assert room[-4:] == struct.pack("<I", len(OLD))
    assert prove_envelope(image, result) == (OLD, content)
    # It can be patched again.
    again = peel(result, len(result))
    assert again is not None
    assert again.data == content
    back = rewritten(result, codec, OLD)
    assert prove_envelope(result, back) == (content, OLD)
    assert prove_envelope(image, back) == (OLD, OLD)


def test_unknown_lengths_allow_no_kernel_of_another_size() -> None:
    image = boot.make(boot.payload_of("xz", OLD), lengths=0)

    with pytest.raises(UnsafeError, match="in no place"):
        rewritten(image, "xz", GROWN)


# Signatures and sums


def test_a_signed_image_is_refused_unless_its_signature_is_given_up(codec: str) -> None:
    image = boot.make(boot.payload_of(codec, OLD), signed=True, checksum=True)

    with pytest.raises(UnsafeError, match="is signed") as refusal:
        rewritten(image, codec)
    assert refusal.value.code == "image-signature"
    result = rewritten(image, codec, strip=True)
    assert boot.read(result).certificates == (0, 0)
    assert b"signature" not in result
    assert prove_envelope(image, result) == (OLD, NEW)


@pytest.mark.parametrize("codec", ["xz"])
def test_an_image_that_lost_its_signature_is_what_it_was_before_it_was_signed(codec: str) -> None:
    payload = boot.payload_of(codec, OLD)
    signed = boot.make(payload, signed=True, checksum=True)

    assert strip_pe_signature(signed) == boot.make(payload) == rewritten(signed, codec, OLD, strip=True)
    assert pe_signature(signed) == range(len(signed) - 64, len(signed))
    assert pe_signature(boot.make(payload)) is None


@pytest.mark.parametrize("signed", [True, False])
def test_a_checksum_is_made_again_where_no_crc_shows_that_there_was_none(signed: bool) -> None:
    image = boot.make(boot.payload_of("xz", OLD), crc=False, checksum=True, signed=signed)
    result = rewritten(image, "xz", strip=signed)

    assert boot.read(result).checksum == boot.pe_sum(result) != boot.read(image).checksum
    assert not boot.crc_holds(result)
    assert result[-4:] == boot.make(boot.payload_of("xz", OLD), crc=False)[-4:]
    assert prove_envelope(image, result) == (OLD, NEW)


def test_a_checksum_that_an_unsigned_image_has_is_kept_right() -> None:
    image = boot.make(boot.payload_of("xz", OLD), checksum=True)
    result = rewritten(image, "xz")

    assert boot.read(result).checksum == boot.pe_sum(result)
    blank = bytearray(result)
    struct.pack_into("<I", blank, boot.CHECKSUM, 0)
    assert boot.crc_holds(bytes(blank))
    assert prove_envelope(image, result) == (OLD, NEW)


def test_something_behind_a_signature_is_not_thrown_away() -> None:
    image = boot.make(boot.payload_of("xz", OLD), signed=True) + b"whatever"

    with pytest.raises(UnsupportedError, match="8 bytes of something else behind its PE signature"):
        rewritten(image, "xz", strip=True)


@pytest.mark.kernel
def test_signing_tools_and_this_take_each_others_signatures(
    vmlinuz: Path, signing: tuple[Path, Path], tmp_path: Path
) -> None:
    image, removed, signed = vmlinuz.read_bytes(), tmp_path / "removed", tmp_path / "signed"
    removed.write_bytes(image)
    subprocess.run(["sbattach", "--remove", removed], check=True, capture_output=True)
    own = boot.write(tmp_path / "own", strip_pe_signature(image))
    key, certificate = signing
    subprocess.run(
        ["sbsign", "--key", key, "--cert", certificate, "--output", signed, own], check=True, capture_output=True
    )

    # The tool leaves a checksum where the build had none.
    assert _without_checksum(removed.read_bytes()) == own.read_bytes()
    subprocess.run(["sbverify", "--cert", certificate, signed], check=True, capture_output=True)
    assert strip_pe_signature(signed.read_bytes()) == own.read_bytes()
    assert prove_envelope(image, signed.read_bytes()) == prove_envelope(image, own.read_bytes())


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory, sbsign: None) -> tuple[Path, Path]:  # noqa: ARG001 - programs
    """A key and its certificate, for programs that sign boot images."""
    folder = tmp_path_factory.mktemp("keys")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    request = ("req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a test", "-days", "30")
    subprocess.run(["openssl", *request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


def _without_checksum(image: bytes) -> bytes:
    return image[: boot.CHECKSUM] + bytes(4) + image[boot.CHECKSUM + 4 :]


# Debian's boot images


@pytest.mark.kernel
def test_debians_image_is_taken_apart_and_put_together_again(vmlinuz: Path, unpacked: Path) -> None:
    image = vmlinuz.read_bytes()
    layer = layer_of(image)
    stream = image[layer.offset :][: layer.stream_size]

    assert rebuild(image, layer, stream, layer.unpacked_size, strip_signature=False) == image
    assert boot.read(image).checksum == boot.pe_sum(image)
    stripped = strip_pe_signature(image)
    assert boot.crc_holds(stripped)
    assert boot.read(stripped)[4:] == (0, (0, 0))
    assert prove_envelope(image, stripped) == (unpacked.read_bytes(),) * 2


@pytest.mark.kernel
def test_debians_memory_is_what_the_prover_and_the_writer_reckon(vmlinuz: Path) -> None:
    """Its header has exactly what its build reckoned, so nothing is to spare for a shorter payload."""
    image = vmlinuz.read_bytes()
    fields, layer = boot.read(image), layer_of(image)
    own = fields.image_size - (fields.payload - struct.unpack_from("<I", image, boot.PAYLOAD)[0])
    extra = layer.unpacked_size + (layer.unpacked_size >> 8) + 131072 - layer.size

    assert fields.init_size == own + (extra + 4095) // 4096 * 4096


@pytest.mark.kernel
def test_a_new_payload_in_debians_image(vmlinuz: Path, unpacked: Path, tmp_path: Path) -> None:
    image = vmlinuz.read_bytes()
    layer, content = layer_of(image), bytearray(unpacked.read_bytes())
    quick = {"zstd": ("zstd", "-qc1"), "lz4": ("lz4", "-qcl1")}[layer.payload.codec.value]

    def packed(data: bytes | bytearray) -> bytes:
        return subprocess.run(quick, input=data, capture_output=True, check=True).stdout

    with pytest.raises(UnsafeError, match="are missing"):
        rebuild(image, layer, packed(content), len(content), strip_signature=True)
    # With less in it a quick compressor is good enough.
    content[len(content) // 3 : len(content) * 3 // 4] = bytes(len(content) * 3 // 4 - len(content) // 3)
    result = rebuild(image, layer, packed(content), len(content), strip_signature=True)
    again = bzimage.unpack(boot.write(tmp_path / "vmlinuz", result), tmp_path / "out")

    assert again.read_bytes() == content
    assert boot.crc_holds(result)
    assert prove_envelope(image, result) == (unpacked.read_bytes(), bytes(content))
    kind = subprocess.run(["file", "-b", tmp_path / "vmlinuz"], capture_output=True, text=True, check=True).stdout
    assert kind.startswith("Linux kernel x86 boot executable bzImage")

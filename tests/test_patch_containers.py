"""Files are patched inside of what is around them: compression, a boot image, an archive whose member is named.

The programs of each format are the judges of what comes out, and the same patch of the plain file of what is inside.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest

from tests.support import boot_images, calls_model, containers, small_kernels, toolchain
from tests.support.objects import Objects
from tests.support.signers import command
from tests.support.tool import Outcome, digest, names_in, refused, report, staticcall, succeed, validate

FAST: Final = ("--set", "alpha=alpha_fast")
RETARGETED: Final = ("--set", "one=target")
BOUND: Final = ("--bind", "--policy=kernel")
# So weak that there is room for more: the same payload compressed as well as can be is never larger.
WEAK: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gzip": ("gzip", "-nc1"),
        "xz": ("xz", "-c0", "--check=crc32"),
        "zstd": ("zstd", "-qc1"),
        "lz4": ("lz4", "-qcl1"),
        "lzma": ("lzma", "-c0"),
    }
)


pytestmark = pytest.mark.usefixtures("packers")


def packed(path: Path, codec: str) -> Path:
    """The file as a program compresses it, beside itself."""
    out = path.with_name(f"{path.name}.{codec}")
    out.write_bytes(containers.compressed(codec, path.read_bytes()))
    return out


def unpacked(path: Path, codec: str) -> bytes:
    return containers.through(containers.unpacker(codec), path.read_bytes())


def assert_undone(original: Path, patched: Path, edits: Path) -> None:
    """See that the undo file is as promised, and that it gives the original again, to the last bit."""
    document = json.loads(edits.read_text())
    validate(document, "edits")
    assert (document["original_sha256"], document["patched_sha256"]) == (digest(original), digest(patched))
    container = document["container"]
    before, after = original.read_bytes(), patched.read_bytes()
    start, old, size = container["file_offset"], base64.b64decode(container["old"]), container["new_size"]
    assert after[:start] + old + after[start + size :] == before
    assert before[start : start + 1] != after[start : start + 1], "what both begin with is left out"
    back = patched.with_name("back")
    succeed("revert", patched, "--edits", edits, "-o", back)
    assert back.read_bytes() == before
    succeed("revert", patched, "--edits", edits, "--in-place")
    assert patched.read_bytes() == before


@pytest.mark.parametrize("codec", containers.EACH)
class TestEachCompression:
    def test_a_program_is_patched_in_it(self, codec: str, program: Path) -> None:
        original, out, edits = packed(program, codec), program.with_name("out"), program.with_name("edits")
        succeed("patch", original, *FAST, "-o", out, "--edits", edits)
        succeed("patch", program, *FAST, "-o", program.with_name("plain"))
        program.write_bytes(unpacked(out, codec))
        assert program.read_bytes() == program.with_name("plain").read_bytes()
        assert toolchain.run(program) == calls_model.prints(alpha="alpha_fast")
        assert "verified" in succeed("verify", original, out)
        assert_undone(original, out, edits)

    def test_an_object_is_patched_in_it(self, codec: str, made: Objects, tmp_path: Path) -> None:
        plain = Path(shutil.copy(made("two_keys"), tmp_path / "object.o"))
        original, out, edits = packed(plain, codec), tmp_path / "out", tmp_path / "edits"
        succeed("patch", original, *RETARGETED, "-o", out, "--edits", edits)
        succeed("patch", plain, *RETARGETED, "--in-place")
        assert unpacked(out, codec) == plain.read_bytes()
        succeed("verify", original, out)
        assert_undone(original, out, edits)

    def test_the_same_patch_gives_the_same_bytes(self, codec: str, program: Path) -> None:
        original, outputs = packed(program, codec), [program.with_name(name) for name in ("one", "two")]
        for out in outputs:
            succeed("patch", original, *FAST, "-o", out)
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_compressed_file_is_replaced_in_its_place(program: Path) -> None:
    original, other = packed(program, "xz-module"), program.with_name("other")
    original.chmod(0o640)
    succeed("patch", original, *FAST, "-o", other)
    succeed("patch", original, *FAST, "--in-place")
    assert original.read_bytes() == other.read_bytes()
    assert original.stat().st_mode & 0o777 == 0o640
    assert names_in(program.parent) == {"program", original.name, "other"}


def test_two_layers_come_back(program: Path) -> None:
    original = packed(packed(program, "zstd"), "gzip")
    out, edits = program.with_name("out"), program.with_name("edits")
    succeed("patch", original, *FAST, "-o", out, "--edits", edits)
    inside = containers.through(containers.unpacker("zstd"), unpacked(out, "gzip"))
    program.write_bytes(inside)
    assert toolchain.run(program) == calls_model.prints(alpha="alpha_fast")
    assert json.loads(edits.read_text())["container"]["layers"] == ["gzip", "zstd"]
    succeed("verify", original, out)
    assert_undone(original, out, edits)


def test_a_dry_run_says_what_is_planned_and_writes_nothing(program: Path) -> None:
    original = packed(program, "zstd")
    before = names_in(program.parent)
    plan = succeed("patch", original, *FAST, "--dry-run").splitlines()[1:]
    assert plan == succeed("patch", program, *FAST, "--dry-run").splitlines()[1:]
    assert names_in(program.parent) == before


def test_the_report_is_of_the_output(program: Path) -> None:
    original, out, written = packed(program, "lz4"), program.with_name("out"), program.with_name("report")
    succeed("patch", original, *FAST, "-o", out, "--report", written)
    (image,) = json.loads(written.read_text())["images"]
    assert image["path"] == str(out)
    assert image == report(out)


def test_pinned_sites_are_found_by_the_undo_file(program: Path) -> None:
    original, out, edits = packed(program, "xz-module"), program.with_name("out"), program.with_name("edits")
    succeed("patch", original, "--pin", "alpha", "-o", out, "--edits", edits)
    summary = report("--edits", edits, out)["summary"]
    assert summary["pinned"] > 0
    assert staticcall("report", "--edits", edits, out, "--output", edits).code == 2
    assert_undone(original, out, edits)


# ---- members of archives ----


def _archive(kind: str, program: Path, made: Objects) -> tuple[Path, Path, tuple[str, ...]]:
    """An archive, its member as a file of its own, and what the member is asked for."""
    folder = program.parent / "files"
    folder.mkdir()
    if kind == "ar":
        member = Path(shutil.copy(made("two_keys"), folder / "member"))
        archive = program.with_name("archive.a")
        subprocess.run(["ar", "rc", archive, member], check=True)
        return archive, member, RETARGETED
    member = folder / "member"
    member.write_bytes(containers.compressed("xz-module", program.read_bytes()))
    if kind == "deb":
        return containers.package(folder, program.with_name("archive.deb"), "xz"), member, FAST
    archive = program.with_name("archive.cpio")
    archive.write_bytes(containers.cpio(folder))
    return archive, member, FAST


@pytest.mark.parametrize("kind", ["ar", "deb", "cpio"])
def test_a_member_becomes_a_file_of_its_own(kind: str, program: Path, made: Objects) -> None:
    archive, member, wish = _archive(kind, program, made)
    before = archive.read_bytes()
    out, other, edits = (program.with_name(name) for name in ("out", "other", "edits"))
    succeed("patch", f"{archive}(member)", *wish, "-o", out, "--edits", edits)
    succeed("patch", member, *wish, "-o", other)
    assert out.read_bytes() == other.read_bytes()
    assert archive.read_bytes() == before
    for original in (f"{archive}(member)", member):
        succeed("verify", original, out)
    succeed("revert", out, "--edits", edits, "--in-place")
    assert out.read_bytes() == member.read_bytes()


@pytest.mark.parametrize("kind", ["ar", "deb", "cpio"])
@pytest.mark.parametrize("how", ["in place", "over the archive", "the undo file over the archive"])
def test_a_member_is_not_written_over_its_archive(kind: str, how: str, program: Path, made: Objects) -> None:
    archive, _, wish = _archive(kind, program, made)
    before = archive.read_bytes()
    where = ["--in-place"] if how == "in place" else ["-o", archive]
    if how.startswith("the undo file"):
        where = ["-o", program.with_name("out"), "--edits", archive]
    outcome = staticcall("patch", f"{archive}(member)", *wish, *where)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "is a member of an archive" in outcome.err
    assert archive.read_bytes() == before
    assert not program.with_name(f"{archive.name}(member)").exists()


def test_an_archive_is_not_replaced_by_what_was_made_with_a_member(program: Path, made: Objects) -> None:
    archive, member, wish = _archive("ar", program, made)
    before = archive.read_bytes()
    within, out = f"{archive}(member)", member.with_name("out")
    runs: list[list[str | Path]] = [
        ["patch", member, *wish, "--vmlinux", within, "-o", archive],
        ["patch", member, *wish, "--vmlinux", within, "-o", out, "--edits", archive],
        ["report", within, "--output", archive],
    ]
    for arguments in runs:
        outcome = staticcall(*arguments)
        assert outcome.code == 2, outcome
        assert "is named twice" in outcome.err
        assert archive.read_bytes() == before


# ---- boot images ----


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("kernel")
    return small_kernels.build(folder, "6.12.0", linking=("--build-id=sha1",)).read_bytes()


def boot_image(folder: Path, codec: str, kernel: bytes, *, signed: bool = False) -> Path:
    stream = containers.through(WEAK[codec], kernel)
    payload = stream if codec == "gzip" else stream + struct.pack("<I", len(kernel))
    return boot_images.write(folder / "vmlinuz", boot_images.make(payload, signed=signed))


@pytest.mark.parametrize("codec", WEAK)
def test_a_kernel_is_patched_in_its_boot_image(codec: str, kernel: bytes, tmp_path: Path) -> None:
    original, plain = boot_image(tmp_path, codec, kernel), tmp_path / "vmlinux"
    out, edits = tmp_path / "out", tmp_path / "edits"
    plain.write_bytes(kernel)
    succeed("patch", original, *BOUND, "-o", out, "--edits", edits)
    succeed("patch", plain, *BOUND, "--in-place")
    image = out.read_bytes()
    boot = boot_images.read(image)
    stream = image[boot.payload : boot.payload + boot.length - (0 if codec == "gzip" else 4)]
    assert containers.through((*containers.UNPACKERS[codec], "-q"), stream) == plain.read_bytes()
    assert boot_images.crc_holds(image)
    assert json.loads(edits.read_text())["container"]["layers"] == [f"bzImage:{codec}"]
    succeed("verify", original, out)
    assert_undone(original, out, edits)


def test_a_byte_beside_the_payload_fails_the_proof(kernel: bytes, tmp_path: Path) -> None:
    original, out = boot_image(tmp_path, "xz", kernel), tmp_path / "out"
    succeed("patch", original, *BOUND, "-o", out)
    image = bytearray(out.read_bytes())
    image[boot_images.START + 5] ^= 1
    out.write_bytes(image)
    outcome = staticcall("verify", original, out)
    assert outcome.code == 5
    assert outcome.err.count("\n") == 1


def test_a_signed_boot_image_is_patched_if_its_signature_may_go(kernel: bytes, tmp_path: Path) -> None:
    original, out = boot_image(tmp_path, "gzip", kernel, signed=True), tmp_path / "out"
    refused("patch", original, *BOUND, "-o", out, code="image-signature")
    assert not out.exists()
    succeed("patch", original, *BOUND, "--strip-signature", "-o", out)
    assert boot_images.read(out.read_bytes()).certificates == (0, 0)
    succeed("verify", original, out)


@pytest.mark.parametrize("signed", [True, False])
def test_a_boot_image_is_signed_anew(signed: bool, kernel: bytes, tmp_path: Path) -> None:
    original, out, edits = boot_image(tmp_path, "gzip", kernel, signed=signed), tmp_path / "out", tmp_path / "edits"
    stripped = tmp_path / "stripped"
    succeed("patch", original, *BOUND, "--sign-with", command(tmp_path, "image"), "-o", out, "--edits", edits)
    succeed("patch", original, *BOUND, "--strip-signature", "-o", stripped)
    start, size = boot_images.read(out.read_bytes()).certificates
    assert size == 64
    image = bytearray(out.read_bytes()[:start])
    for at, width in ((boot_images.CHECKSUM, 4), (boot_images.CERTIFICATES, 8)):
        image[at : at + width] = stripped.read_bytes()[at : at + width]
    assert image == stripped.read_bytes() + bytes(-stripped.stat().st_size % 8)
    assert_undone(original, out, edits)


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("module", "is not signed after the signing command"),
        ("image with something behind", "has something behind its signature"),
        ("image with a byte flipped", "was changed otherwise by the signing command"),
        ("image with a bad table", "has a certificate table that is not in order"),
        ("nothing left", "is no PE file after the signing command"),
    ],
)
def test_a_command_that_does_anything_else_to_it_is_found(way: str, says: str, kernel: bytes, tmp_path: Path) -> None:
    original, out = boot_image(tmp_path, "gzip", kernel), tmp_path / "out"
    outcome = staticcall("patch", original, *BOUND, "--sign-with", command(tmp_path, way), "-o", out)
    assert outcome.code == 5
    assert outcome.err.count("\n") == 1
    assert says in outcome.err
    assert not out.exists()


# ---- the proof alone ----


def test_one_of_the_two_may_be_unpacked(program: Path) -> None:
    original, out = packed(program, "zstd"), program.with_name("out")
    succeed("patch", program, *FAST, "-o", out)
    assert f"compared unpacked, since {original} is zstd and {out} plain" in succeed("verify", original, out)
    assert f"compared unpacked, since {program} is plain" in succeed("verify", program, packed(out, "xz-module"))


def test_two_ways_of_packing_are_not_the_same(program: Path) -> None:
    outcome = staticcall("verify", packed(program, "zstd"), packed(program, "gzip"))
    assert outcome.code == 5
    assert "is packed in another way: gzip, and the original zstd" in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_offset_inside_says_what_it_is_an_offset_of(program: Path) -> None:
    original, out = packed(program, "zstd"), program.with_name("out")
    succeed("patch", program, *FAST, "-o", out)
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    outcome = staticcall("verify", original, packed(out, "zstd"))
    assert outcome.code == 5
    assert f"(offset {len(data) - 1:#x} of the file inside)" in outcome.err


# ---- the undo file ----


@pytest.mark.parametrize(
    "change",
    [
        {"file_offset": -1},
        {"file_offset": 1.0},
        {"file_offset": 1 << 70},
        {"new_size": -1},
        {"new_size": True},
        {"old": "?"},
        {"old": 5},
        {"layers": "xz"},
        {"layers": [1]},
    ],
    ids=str,
)
def test_a_container_that_is_none_is_refused(change: dict[str, Any], program: Path) -> None:
    outcome = _reverted_with(change, program)
    assert outcome.code == 3
    assert outcome.err.count("\n") == 1
    assert not program.with_name("back").exists()


@pytest.mark.parametrize("change", [{"file_offset": 10**9}, {"new_size": 10**9}, {"old": ""}, {"new_size": 0}], ids=str)
def test_a_container_of_another_file_gives_nothing(change: dict[str, Any], program: Path) -> None:
    outcome = _reverted_with(change, program)
    assert outcome.code == 5
    assert "does not become the original again" in outcome.err
    assert not program.with_name("back").exists()


def _reverted_with(change: dict[str, Any], program: Path) -> Outcome:
    """What revert says of an undo file whose container was changed."""
    original, out, edits = packed(program, "zstd"), program.with_name("out"), program.with_name("edits")
    succeed("patch", original, *FAST, "-o", out, "--edits", edits)
    document = json.loads(edits.read_text())
    document["container"] |= change
    edits.write_text(json.dumps(document))
    return staticcall("revert", out, "--edits", edits, "-o", program.with_name("back"))

"""Debian's own boot image with another kernel in it: its signature goes, or a new one comes that holds."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support import boot_images, bzimage, small_kernels
from tests.support.tool import digest, refused, staticcall, succeed, validate

pytestmark = pytest.mark.kernel

WISH: Final = ("--set", "pv_sched_clock=trace_clock_jiffies")


class Signer(NamedTuple):
    command: str
    certificate: Path


@pytest.fixture(scope="module")
def vmlinuz(vmlinux_61: Path) -> Path:
    """The one whose payload is compressed with lz4, which takes seconds where zstd takes half a minute."""
    return bzimage.packed(vmlinux_61)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory, sbsign: None) -> Signer:  # noqa: ARG001 - it looks for programs
    folder = tmp_path_factory.mktemp("signer")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "3650", "-subj", "/CN=boots"]
    subprocess.run(["openssl", "req", *made, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    words = ["sbsign", "--key", str(key), "--cert", str(certificate), "--output", "{}", "{}"]
    return Signer(shlex.join(words), certificate)


class Signed(NamedTuple):
    original: Path
    path: Path
    edits: Path


@pytest.fixture(scope="module")
def signed(vmlinuz: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    folder = tmp_path_factory.mktemp("signed")
    path, edits = folder / "vmlinuz", folder / "edits.json"
    succeed("patch", vmlinuz, *WISH, "--sign-with", signer.command, "-o", path, "--edits", edits)
    return Signed(vmlinuz, path, edits)


def test_a_new_signature_holds(signed: Signed, signer: Signer) -> None:
    done = subprocess.run(["sbverify", "--cert", signer.certificate, signed.path], capture_output=True, check=False)
    assert done.returncode == 0, done
    assert b"Signature verification OK" in done.stdout


def test_a_byte_changed_afterwards_breaks_it(signed: Signed, signer: Signer, tmp_path: Path) -> None:
    data = bytearray(signed.path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "vmlinuz").write_bytes(data)
    command: list[str | Path] = ["sbverify", "--cert", signer.certificate, tmp_path / "vmlinuz"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_it_is_proved_and_undone(signed: Signed, tmp_path: Path) -> None:
    proof = succeed("verify", signed.original, signed.path)
    assert "changed keys: 1" in proof
    validate(json.loads(signed.edits.read_text()), "edits")
    succeed("revert", signed.path, "--edits", signed.edits, "-o", tmp_path / "back")
    assert digest(tmp_path / "back") == digest(signed.original)


def test_what_is_inside_is_the_kernel_patched_by_itself(signed: Signed, tmp_path: Path) -> None:
    inside, plain = tmp_path / "inside", tmp_path / "plain"
    bzimage.unpack(signed.path, inside)
    bzimage.unpack(signed.original, plain)
    succeed("patch", plain, *WISH, "--in-place")
    assert digest(inside) == digest(plain)


def test_debians_signature_is_not_dropped_unasked(vmlinuz: Path, tmp_path: Path) -> None:
    refused("patch", vmlinuz, *WISH, "-o", tmp_path / "vmlinuz", code="image-signature")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sbsign")
def test_a_command_that_signs_with_a_wrong_key_publishes_nothing(tmp_path: Path) -> None:
    kernel = small_kernels.build(tmp_path, "6.12.0").read_bytes()
    small = boot_images.write(tmp_path / "small", boot_images.make(gzip.compress(kernel, 1)))
    words = shlex.join(["sbsign", "--key", "/dev/null", "--cert", "/dev/null", "--output", "{}", "{}"])
    out = tmp_path / "vmlinuz"
    outcome = staticcall("patch", small, "--bind", "--policy=kernel", "--sign-with", words, "-o", out)
    assert outcome.code == 3
    assert outcome.err.count("\n") == 1
    assert "the signing command failed (exit code 1)" in outcome.err
    assert not out.exists()

"""What is written at a site depends on the kernel in the file: its version, its thunks, its signatures.

Small images linked like a kernel stand in for the versions that no archive offers any more; the bytes expected
are those of arch/x86/kernel/static_call.c of each version.
"""

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from staticcall.cli.main import run
from tests.support.toolchain import bytes_at, symbols

SOURCE = Path(__file__).parent.parent / "fixtures" / "kernel" / "kernel.S"
Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(version: str = "6.12.0", *defines: str) -> Path:
        out = tmp_path / "-".join(["vmlinux", version, *defines])
        subprocess.run(
            [
                "gcc",
                "-nostdlib",
                "-static",
                "-no-pie",
                f'-DVERSION="{version}"',
                *(f"-D{name}" for name in defines),
                "-Wl,-Ttext-segment=0xffffffff81000000,--build-id=none",
                "-o",
                out,
                SOURCE,
            ],
            check=True,
        )
        return out

    return make


def report(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, object]]:
    """The image's sites by the label that stands there."""
    assert run(["report", "--format", "json", "--fail-on", "never", *options, str(path)]) == 0
    image = json.loads(capsys.readouterr().out)["images"][0]
    labels = {address: name for name, address in symbols(path).items()}
    return {labels[int(site["address"], 16)]: site for site in image["sites"]}


def patched(path: Path, *options: str) -> Path:
    out = path.with_name(path.name + ".patched")
    assert run(["patch", str(path), "-o", str(out), "--quiet", *options]) == 0
    return out


def code_at(path: Path, label: str, size: int = 5) -> str:
    return bytes_at(path, symbols(path)[label], size).hex()


def branch(path: Path, label: str, opcode: str, target: str) -> str:
    """The bytes of a branch with rel32 at a label."""
    places = symbols(path)
    end = places[label] + len(bytes.fromhex(opcode)) + 4
    return opcode + struct.pack("<i", places[target] - end).hex()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("5.12.0", "66664831c0"),
        ("5.15.100", "66664831c0"),
        ("5.17.9", "66664831c0"),
        ("5.18.0", "2e2e2e31c0"),
        ("6.12.0", "2e2e2e31c0"),
    ],
)
def test_ret0_is_the_xor_of_the_kernels_version(build: Build, version: str, expected: str) -> None:
    out = patched(build(version), "--bind")

    assert code_at(out, "zero_call") == expected


def test_kernels_before_ret0_call_the_function_that_returns_0(build: Build) -> None:
    out = patched(build("5.10.0", "SCT"), "--bind")

    assert code_at(out, "zero_call") == branch(out, "zero_call", "e8", "__static_call_return0")


def test_a_null_call_becomes_the_nop_of_five_bytes(build: Build) -> None:
    assert code_at(patched(build(), "--bind"), "empty_call") == "0f1f440000"


def test_without_return_thunks_a_null_tail_becomes_a_padded_return(build: Build) -> None:
    out = patched(build("5.15.0", "SCT"), "--bind", "--policy", "kernel")

    assert code_at(out, "empty_tail") == "c3cccccccc"
    assert code_at(out, "empty_jcc", 6) == branch(out, "empty_jcc", "0f84", "__static_call_return")


def test_with_return_thunks_a_null_tail_is_left_to_the_boot(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    original = build("6.12.0", "THUNK")
    sites = report(original, capsys, "--policy", "kernel")
    out = patched(original, "--bind", "--policy", "kernel")

    for label, size in (("empty_tail", 5), ("empty_jcc", 6)):
        assert sites[label]["reason"] == "return-form-chosen-at-boot"
        assert code_at(out, label, size) == code_at(original, label, size)


def test_tails_and_conditional_tails_go_straight_to_the_function(build: Build) -> None:
    out = patched(build(), "--set", "filled=other", "--policy", "kernel")

    assert code_at(out, "filled_call") == branch(out, "filled_call", "e8", "other")
    assert code_at(out, "filled_tail") == branch(out, "filled_tail", "e9", "other")
    assert code_at(out, "filled_jcc", 6) == branch(out, "filled_jcc", "0f84", "other")
    assert code_at(out, "zero_tail") == branch(out, "zero_tail", "e9", "__SCT__zero")


def test_a_tail_to_ret0_is_a_jump_and_never_the_xor(build: Build) -> None:
    out = patched(build(), "--bind", "--policy", "kernel")

    assert code_at(out, "zero_tail") == branch(out, "zero_tail", "e9", "__static_call_return0")


@pytest.mark.parametrize("defines", [("SCT",), ()])
def test_the_signature_of_a_trampoline_stays(build: Build, defines: tuple[str, ...]) -> None:
    original = build("5.15.0", *defines)
    out = patched(original, "--set", "filled=other")

    assert code_at(out, "__SCT__filled") == branch(out, "__SCT__filled", "e9", "other")
    assert code_at(out, "__SCT__filled", 8)[10:] == code_at(original, "__SCT__filled", 8)[10:]
    assert code_at(out, "__SCK__filled", 8) == struct.pack("<Q", symbols(out)["other"]).hex()


def test_a_prefix_in_a_kernel_is_an_error_since_its_boot_would_stop(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build()

    assert run(["report", str(path)]) == 1
    assert "unaccepted-bytes" in capsys.readouterr().out


def test_a_conditional_tail_is_an_error_before_6_2(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    findings = {}
    for version in ("6.1.0", "6.2.0"):
        run(["report", "--format", "json", str(build(version))])
        image = json.loads(capsys.readouterr().out)["images"][0]
        findings[version] = [f for f in image["findings"] if "(jcc" in f["message"]]

    assert len(findings["6.1.0"]) == 2
    assert findings["6.2.0"] == []


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ("empty=function", "kaslr-slot"),
        ("filled=NULL", "kaslr-slot"),
        ("filled=early", "target-in-init"),
        ("filled=functoin", "unknown-function"),
        ("fillet=function", "unknown-key"),
        ("filled=linux_banner", "unknown-function"),
    ],
)
def test_what_would_crash_later_is_refused(
    build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path, wish: str, code: str
) -> None:
    out = tmp_path / "out"

    assert run(["patch", str(build()), "-o", str(out), "--set", wish]) == 4
    assert f"[{code}]" in capsys.readouterr().err
    assert not out.exists()


def test_a_forced_null_is_coherent_all_the_same(build: Build) -> None:
    forces = ("--force", "kaslr-slot", "--force", "null-returns-value")
    plain = patched(build("5.15.0"), "--set", "filled=NULL", *forces, "--policy", "kernel")
    thunk = patched(build("6.12.0", "THUNK"), "--set", "filled=NULL", *forces)

    assert code_at(plain, "filled_call") == "0f1f440000"
    assert code_at(plain, "filled_tail") == "c3cccccccc"
    assert code_at(plain, "__SCT__filled") == "c3cc909090"
    assert code_at(thunk, "__SCT__filled") == branch(thunk, "__SCT__filled", "e9", "__x86_return_thunk")
    for out in (plain, thunk):
        assert code_at(out, "__SCK__filled", 8) == "00" * 8

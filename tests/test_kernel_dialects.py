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

from staticcall.cli.entry import run
from tests.support import small_kernels
from tests.support.tool import refused, succeed
from tests.support.toolchain import symbols

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return lambda version="6.12.0", *defines: small_kernels.build(tmp_path, version, *defines)


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
    return small_kernels.code_at(path, label, size).hex()


def branch(path: Path, label: str, opcode: str, target: str) -> str:
    """The bytes of a branch with rel32 at a label."""
    places = symbols(path)
    end = places[label] + len(bytes.fromhex(opcode)) + 4
    return opcode + struct.pack("<i", places[target] - end).hex()


@pytest.mark.parametrize(
    ("version", "defines", "expected"),
    [
        ("5.12.0", ("UNSIGNED",), "66664831c0"),
        ("5.15.0", ("UNSIGNED",), "66664831c0"),
        # Its trampolines say that it has what stable kernels took over later.
        ("5.15.100", (), "2e2e2e31c0"),
        ("5.17.9", ("SCT",), "66664831c0"),
        ("5.18.0", ("SCT",), "2e2e2e31c0"),
        ("6.12.0", (), "2e2e2e31c0"),
    ],
)
def test_ret0_is_the_xor_of_the_kernels_version(
    build: Build, version: str, defines: tuple[str, ...], expected: str
) -> None:
    out = patched(build(version, *defines), "--bind")

    assert code_at(out, "zero_call") == expected


def test_kernels_before_ret0_call_the_function_that_returns_0(build: Build) -> None:
    out = patched(build("5.10.0", "UNSIGNED"), "--bind")

    assert code_at(out, "zero_call") == branch(out, "zero_call", "e8", "__static_call_return0")


def test_a_null_call_becomes_the_nop_of_five_bytes(build: Build) -> None:
    assert code_at(patched(build(), "--bind"), "empty_call") == "0f1f440000"


def test_without_return_thunks_a_null_tail_becomes_a_padded_return(build: Build) -> None:
    out = patched(build("5.15.0", "UNSIGNED"), "--bind", "--policy", "kernel")

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


@pytest.mark.parametrize(("version", "defines"), [("5.15.0", ("UNSIGNED",)), ("5.17.0", ("SCT",)), ("5.15.100", ())])
def test_what_stands_behind_the_code_of_a_trampoline_stays(
    build: Build, version: str, defines: tuple[str, ...]
) -> None:
    original = build(version, *defines)
    out = patched(original, "--set", "filled=other")

    assert code_at(out, "__SCT__filled") == branch(out, "__SCT__filled", "e9", "other")
    assert code_at(out, "__SCT__filled", 8)[10:] == code_at(original, "__SCT__filled", 8)[10:]
    assert code_at(out, "__SCK__filled", 8) == struct.pack("<Q", symbols(out)["other"]).hex()


def test_a_prefix_in_a_kernel_is_an_error_since_its_boot_would_stop(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build("6.12.0", "PREFIXED")

    assert run(["report", str(path)]) == 1
    assert "unaccepted-bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "defines", "errors"),
    [("6.2.0", ("NO_RETURN",), 2), ("6.1.99", (), 0), ("6.3.0", ("NO_RETURN",), 0)],
    ids=["before 6.3", "stable with the backport", "since 6.3"],
)
def test_a_conditional_tail_is_an_error_where_the_kernel_knows_none(
    build: Build, capsys: pytest.CaptureFixture[str], version: str, defines: tuple[str, ...], errors: int
) -> None:
    run(["report", "--format", "json", str(build(version, *defines))])
    image = json.loads(capsys.readouterr().out)["images"][0]

    assert sum("(jcc" in finding["message"] for finding in image["findings"]) == errors


def test_before_5_13_a_null_call_is_left_to_the_boot(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    original = build("5.10.0", "UNSIGNED")
    out = patched(original, "--bind")

    assert report(original, capsys)["empty_call"]["reason"] == "nop-chosen-at-boot"
    assert code_at(out, "empty_call") == code_at(original, "empty_call")


def test_a_kernels_own_constant_says_more_than_its_version(build: Build) -> None:
    out = patched(build("5.15.0", "XOR=0x2e,0x2e,0x2e,0x31,0xc0"), "--bind")

    assert code_at(out, "zero_call") == "2e2e2e31c0"


def test_the_verifier_refuses_an_xor_that_this_kernel_does_not_know(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    original = build("6.12.0", "XOR=0x2e,0x2e,0x2e,0x31,0xc0")
    out = patched(original, "--bind")
    data = out.read_bytes()
    assert data.count(bytes.fromhex("2e2e2e31c0")) == 2
    site = data.index(bytes.fromhex("2e2e2e31c0"))
    out.write_bytes(data[:site] + bytes.fromhex("66664831c0") + data[site + 5 :])

    assert run(["verify", str(original), str(out)]) == 5
    assert "holds 66664831c0, which this kernel does not accept: BUG() at boot" in capsys.readouterr().err


def test_the_verifier_refuses_a_slot_that_nothing_relocates(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    original = build("5.15.0")
    out = patched(original, "--set", "empty=function", "--force", "kaslr-slot")

    assert run(["verify", str(original), str(out)]) == 5
    assert "relocations did not follow" in capsys.readouterr().err
    assert run(["verify", "--allow", "kaslr-slot", str(original), str(out)]) == 0


@pytest.mark.parametrize("wish", [("--bind",), ("--set", "filled=other")])
def test_a_record_that_contradicts_its_instruction_is_refused(
    build: Build, capsys: pytest.CaptureFixture[str], wish: tuple[str, ...]
) -> None:
    path = build()
    table = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    row = next(line for line in table.splitlines() if ".static_call_sites" in line).split("]")[1].split()
    offset = int(row[3], 16)
    data = bytearray(path.read_bytes())
    (key,) = struct.unpack_from("<i", data, offset + 4)
    struct.pack_into("<i", data, offset + 4, key + 1)  # TAIL on the first record, that of filled_call
    path.write_bytes(data)

    assert run(["patch", str(path), "--dry-run", *wish]) == 4
    assert "[damaged-site]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ("empty=function", "kaslr-slot"),
        ("filled=NULL", "kaslr-slot"),
        ("filled=early", "target-in-init"),
        ("filled=functoin", "unknown-function"),
        ("fillet=function", "unknown-key"),
        ("filled=linux_banner", "unknown-function"),
        ("filled=inside", "unknown-function"),
    ],
)
def test_what_would_crash_later_is_refused(
    build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path, wish: str, code: str
) -> None:
    out = tmp_path / "out"

    assert run(["patch", str(build()), "-o", str(out), "--set", wish]) == 4
    assert f"[{code}]" in capsys.readouterr().err
    assert not out.exists()


def test_no_site_is_pinned_to_what_is_freed_after_boot(build: Build) -> None:
    """A key may lead into init code as long as it is led elsewhere before that is gone; a pinned site stays."""
    path = patched(build(), "--set", "filled=early", "--force", "target-in-init")
    options = ("patch", path, "--dry-run", "--pin", "filled")

    assert ".init.text" in refused(*options, code="target-in-init")
    assert "pinned to early" in succeed(*options, "--force", "target-in-init")


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

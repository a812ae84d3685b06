"""What is refused for objects: with which exit code, in one line, without an address, and with nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.objects import SOURCES, Objects
from tests.support.refusals import INPUT, USAGE, one_line
from tests.support.tool import digest, refused, staticcall, succeed
from tests.support.toolchain import run
from tests.support.user_objects import Workshop, prints, run_tool

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

_PRETENDED = re.compile(r"0x(?:ffffffff8[0-9a-f]{7}|4[0-9a-f]{5})\b")
# A module's signature: PKCS#7 data, twelve bytes of which the last four are their size, and a mark.
_SIGNATURE = b"pkcs7" + bytes(8) + (5).to_bytes(4, "big") + b"~Module signature appended~\n"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def calls(workshop: Workshop, tmp_path: Path) -> Path:
    """The object as a test's own file."""
    path = tmp_path / "calls.o"
    path.write_bytes(workshop.object().read_bytes())
    return path


def _assemble(folder: Path, *lines: str) -> Path:
    (folder / "made.S").write_text("\n".join(['#include "static_call.inc"', *lines]) + "\n")
    run_tool("gcc", f"-I{SOURCES}", "-c", folder / "made.S", "-o", folder / "made.o")
    (folder / "made.S").unlink()
    return folder / "made.o"


def _refuse(path: Path, *options: str, code: str) -> str:
    """See that each way to patch is refused, and that nothing is left of it."""
    before, files = digest(path), sorted(path.parent.iterdir())
    output, edits = path.parent / "out.o", path.parent / "edits.json"
    lines = {
        refused("patch", path, *options, *way, code=code)
        for way in (("-o", output, "--edits", edits), ("--dry-run",), ("--in-place", "--edits", edits))
    }
    assert (digest(path), sorted(path.parent.iterdir())) == (before, files)
    (line,) = lines
    assert not _PRETENDED.search(line), line
    assert line.startswith(f"staticcall: {path}: ")
    return line


def _wrong(path: Path, *arguments: str | Path, code: int, echo: str = "") -> str:
    before, files = digest(path), sorted(path.parent.iterdir())
    outcome = staticcall(*arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome
    assert (digest(path), sorted(path.parent.iterdir())) == (before, files)
    line = one_line(outcome)
    assert not _PRETENDED.search(line.replace(echo, "") if echo else line), line
    return line


# ---- keys and trampolines ----


def test_a_key_of_another_object_is_not_led_elsewhere(made: Objects, tmp_path: Path) -> None:
    path = tmp_path / "calls.o"
    path.write_bytes(made("calls").read_bytes())
    line = _refuse(path, "--set", "add=both", code="key-elsewhere")
    assert "key add is defined in another file" in line


def test_a_trampoline_of_another_object_would_not_follow(tmp_path: Path) -> None:
    path = _assemble(tmp_path, "KEY one, target", "FUNCTION target", "call __SCT__one", "ret", "END target")
    line = _refuse(path, "--set", "one=target", code="trampoline-elsewhere")
    assert "trampoline of key one" in line


def test_a_misspelt_key_gets_a_suggestion(calls: Path) -> None:
    assert "did you mean alpha?" in _refuse(calls, "--set", "alhpa=plus_two", code="unknown-key")


def test_the_address_of_a_key_is_nobodys_name_for_it(calls: Path) -> None:
    """Whatever place a key is pretended to have, nobody can have it from the tool."""
    for address in range(0x400000, 0x400400, 8):
        outcome = staticcall("patch", calls, "--dry-run", "--set", f"{address:#x}=plus_two")
        assert outcome.code == 4
        assert "[unknown-key]" in outcome.err


def test_a_key_without_bytes_in_the_file_cannot_be_written(calls: Path) -> None:
    for target in ("plus_one", "plus_four", "RET0"):
        assert "key delta" in _refuse(calls, "--set", f"delta={target}", code="slot-not-in-file")


def test_keys_of_one_name_are_told_apart_by_nobody(tmp_path: Path) -> None:
    """As a combination of objects with local keys has them."""
    local = [".data", ".local __SCK__one", "__SCK__one: .quad f", ".text", "f: ret"]
    for name in ("one.o", "two.o"):
        _assemble(tmp_path, *local).rename(tmp_path / name)
    run_tool("ld.bfd", "-r", tmp_path / "one.o", tmp_path / "two.o", "-o", tmp_path / "both.o")
    line = _refuse(tmp_path / "both.o", "--set", "one=f", code="ambiguous-key")
    assert ".data+0x0, .data+0x8" in line
    assert "address" not in line


# ---- targets ----


@pytest.mark.parametrize("target", ["__SCT__beta", "__SCT__alpha", "__SCT__delta"])
def test_a_trampoline_is_no_target(target: str, calls: Path) -> None:
    _refuse(calls, "--set", f"alpha={target}", code="target-is-trampoline")


def test_a_trampoline_of_another_object_is_no_target(tmp_path: Path) -> None:
    path = _assemble(tmp_path, "DEFINE one, f", ".text", "FUNCTION f", "call __SCT__one", "jmp __SCT__other", "END f")
    _refuse(path, "--set", "one=__SCT__other", code="target-is-trampoline")


def test_functions_of_one_name_are_told_apart_by_nobody(tmp_path: Path) -> None:
    for name in ("one", "two"):
        lines = [
            f"DEFINE {name}, f",
            ".text",
            ".type f, @function",
            "f: ret",
            "END f",
            f"FUNCTION {name}",
            f"call __SCT__{name}",
            f"END {name}",
        ]
        _assemble(tmp_path, *lines).rename(tmp_path / f"{name}.o")
    run_tool("ld.bfd", "-r", tmp_path / "one.o", tmp_path / "two.o", "-o", tmp_path / "both.o")
    line = _refuse(tmp_path / "both.o", "--set", "one=f", code="ambiguous-function")
    assert ".text+0x0, .text+0x" in line
    assert "give the address" not in line


@pytest.mark.parametrize("target", ["alpha_inside_data", "__SCK__beta"])
def test_data_is_no_target(target: str, tmp_path: Path) -> None:
    lines = ["DEFINE one, f", "KEY beta, 0", ".data", ".globl alpha_inside_data", "alpha_inside_data: .quad 0"]
    path = _assemble(tmp_path, *lines, ".text", "FUNCTION f", "call __SCT__one", "END f")
    _refuse(path, "--set", f"one={target}", code="unknown-function")


def test_null_instead_of_a_function_that_may_return_a_value_takes_a_word(calls: Path) -> None:
    line = _refuse(calls, "--set", "alpha=NULL", code="null-returns-value")
    assert "plus_one, the target of key alpha" in line
    succeed("patch", calls, "--in-place", "--set", "alpha=NULL", "--force", "null-returns-value")


def test_a_bound_target_without_a_symbol_cannot_be_named(tmp_path: Path) -> None:
    """A label that is local to the assembler, in a section that clang gives no symbol: only the key knows the place."""
    lines = ["DEFINE one, .Lhere", ".text", "nop", ".Lhere: ret", "FUNCTION f", "call __SCT__one", "END f"]
    path = _assemble(tmp_path, *lines)
    # The section's symbol says it, with an addend.
    out = tmp_path / "out.o"
    succeed("patch", path, "--bind", "-o", out)
    assert succeed("verify", path, out).startswith("verified: ")


def test_a_bound_target_that_no_symbol_can_say_is_refused(tmp_path: Path) -> None:
    """Clang's assembler leaves out symbols of sections, and a key may lead to behind a function's start."""
    lines = [
        "DEFINE one, f + 1",
        '.section .text.other, "ax", @progbits',
        "FUNCTION f",
        "nop",
        "ret",
        "END f",
        ".text",
        "FUNCTION g",
        "call __SCT__one",
        "END g",
    ]
    source, path = tmp_path / "made.S", tmp_path / "made.o"
    source.write_text("\n".join(['#include "static_call.inc"', *lines]) + "\n")
    run_tool("clang", f"-I{SOURCES}", "-c", source, "-o", path)
    succeed("annotate", "--in-place", path)
    _refuse(path, "--bind", code="target-without-symbol")


# ---- kernel objects ----

_MODULE = ('.section .modinfo, "a", @progbits', '.asciz "license=GPL"')


def _module(folder: Path, *lines: str) -> Path:
    body = ["DEFINE one, f", ".text", "FUNCTION f", "call __SCT__one", "ret", "END f"]
    early = ['.section .init.text, "ax", @progbits', "FUNCTION early", "ret", "END early"]
    return _assemble(folder, *body, *early, *_MODULE, *lines)


def test_a_function_that_is_freed_after_boot_is_no_target_for_what_is_called_later(tmp_path: Path) -> None:
    path = _module(tmp_path)
    annotated = tmp_path / "annotated.o"
    succeed("annotate", path, "-o", annotated)
    for one in (path, annotated):
        assert ".init.text" in _refuse(one, "--set", "one=early", code="target-in-init")
    succeed("patch", path, "-o", tmp_path / "out.o", "--set", "one=early", "--force", "target-in-init")


def test_a_signed_module_is_patched_only_without_its_signature(tmp_path: Path) -> None:
    bare = _module(tmp_path)
    signed = tmp_path / "signed.ko"
    signed.write_bytes(bare.read_bytes() + _SIGNATURE)
    line = _refuse(signed, "--set", "one=somewhere", code="module-signature")
    assert "--strip-signature" in line
    _refuse(signed, "--bind", code="module-signature")
    from_signed, from_bare = tmp_path / "signed.out", tmp_path / "bare.out"
    edits, back = tmp_path / "edits.json", tmp_path / "back.ko"
    options = ("--set", "one=somewhere", "--strip-signature")
    succeed("patch", signed, "-o", from_signed, "--edits", edits, *options)
    succeed("patch", bare, "-o", from_bare, *options)
    assert from_signed.read_bytes() == from_bare.read_bytes()
    assert succeed("verify", signed, from_signed).startswith("verified: ")
    succeed("revert", from_signed, "--edits", edits, "-o", back)
    assert back.read_bytes() == signed.read_bytes()


def test_a_report_reads_signed_modules(tmp_path: Path) -> None:
    path = _module(tmp_path)
    before = succeed("report", path)
    path.write_bytes(path.read_bytes() + _SIGNATURE)
    assert succeed("report", path) == before


# ---- wrong usage, and what is no object ----


@pytest.mark.parametrize("address", ["0x0", "0x400000", "0x400010", "0xffffffff81000000", "0xzz"])
def test_an_address_is_no_target_in_an_object(address: str, calls: Path) -> None:
    line = _wrong(calls, "patch", calls, "--dry-run", "--set", f"alpha={address}", code=USAGE, echo=address)
    assert "name a function" in line


@pytest.mark.parametrize("target", ["two words", "a+b", "1st", "a\nb", "é", ""])
def test_what_is_no_name_is_no_target(target: str, calls: Path) -> None:
    _wrong(calls, "patch", calls, "--dry-run", "--set", f"alpha={target}", code=USAGE)


def test_objects_have_their_tables_in_sections(calls: Path) -> None:
    for command in (("report", calls), ("patch", calls, "--bind", "--dry-run")):
        line = _wrong(calls, *command, "--table", "0x400000:0x400008", code=USAGE)
        assert "linked images" in line


def test_archives_are_patched_member_by_member(calls: Path) -> None:
    library = calls.with_name("lib.a")
    run_tool("ar", "rcs", library, calls)
    for way in (("--dry-run",), ("--in-place",), ("-o", calls.with_name("out.a"))):
        line = _wrong(library, "patch", library, "--set", "alpha=plus_two", *way, code=INPUT)
        assert "FILE(MEMBER)" in line


def test_a_member_that_was_patched_goes_back_into_its_archive(calls: Path, workshop: Workshop, tmp_path: Path) -> None:
    """As the advice has it."""
    library = tmp_path / "lib.a"
    run_tool("ar", "rcs", library, calls)
    succeed("patch", calls, "--in-place", "--set", "alpha=plus_four")
    run_tool("ar", "rcs", library, calls)
    run_tool("ar", "t", library)
    assert run(workshop.link(library)) == prints({"alpha": "plus_four"})


@pytest.mark.parametrize("size", [0, 16, 63, 64, 200, 1000])
def test_a_piece_of_an_object_is_refused(size: int, calls: Path) -> None:
    calls.write_bytes(calls.read_bytes()[:size])
    for command in (("report", calls), ("patch", calls, "--bind", "--dry-run"), ("verify", calls, calls)):
        assert str(calls) in _wrong(calls, *command, code=INPUT)

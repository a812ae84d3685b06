"""Programs without symbols, and the files beside them that have them: debug files and lists of names."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from staticcall.read import debug_file
from tests.support import tool
from tests.support.elf_edit import Elf
from tests.support.programs import Builder
from tests.support.tool import Json, report, staticcall, succeed


class Stripped(NamedTuple):
    """A program as it was built, without its symbols, and those in a file of their own."""

    whole: Path
    bare: Path
    debug: Path
    build_id: str


@pytest.fixture(params=["exec", "pie"])
def stripped(request: pytest.FixtureRequest, built: Builder, tmp_path: Path) -> Stripped:
    whole = built("calls", request.param)
    bare, debug = tmp_path / "program", tmp_path / "other" / "program.debug"
    debug.parent.mkdir()
    subprocess.run(["strip", "-o", bare, whole], check=True)
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    return Stripped(whole, bare, debug, report(whole)["build_id"])


def same_but_for_names(found: Json, wanted: Json) -> None:
    for field in ("sites", "keys", "summary", "findings"):
        assert found[field] == wanted[field], field


def refusal(*arguments: str | Path) -> str:
    """What is said in the one line of an input error."""
    outcome = staticcall(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1), outcome
    return outcome.err


def test_a_debug_file_gives_the_names_back(stripped: Stripped) -> None:
    assert report(stripped.bare)["names"]["source"] in ("dynsym", "none")
    found = report("--debug-file", stripped.debug, stripped.bare)
    assert found["names"] == {"source": "debug-file", "path": str(stripped.debug)}
    same_but_for_names(found, report(stripped.whole))
    assert f"  names from the debug file {stripped.debug}\n" in succeed(
        "report", "--debug-file", stripped.debug, stripped.bare
    )


def test_a_debug_file_may_be_compressed(stripped: Stripped, tmp_path: Path) -> None:
    packed = tmp_path / "program.debug.xz"
    packed.write_bytes(lzma.compress(stripped.debug.read_bytes()))
    same_but_for_names(report("--debug-file", packed, stripped.bare), report(stripped.whole))


def test_an_unstripped_twin_will_do(stripped: Stripped) -> None:
    same_but_for_names(report("--debug-file", stripped.whole, stripped.bare), report(stripped.whole))


def test_debug_data_are_found_by_build_id(stripped: Stripped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "debug"
    file = folder / ".build-id" / stripped.build_id[:2] / f"{stripped.build_id[2:]}.debug"
    file.parent.mkdir(parents=True)
    stripped.debug.rename(file)
    found = report("--debug-dir", folder, stripped.bare)
    assert found["names"] == {"source": "debug-file", "path": str(file)}
    same_but_for_names(found, report(stripped.whole))
    # A file's own symbols need no others.
    assert report("--debug-dir", folder, stripped.whole)["names"]["source"] == "symtab"
    # The system's folder is searched without being asked for, and another one instead where it is named.
    monkeypatch.setattr(debug_file, "SYSTEM_DEBUG_DIR", folder)
    assert report(stripped.bare)["names"]["path"] == str(file)
    assert report("--debug-dir", tmp_path, stripped.bare)["names"]["path"] is None


@pytest.mark.parametrize("beside", [".", ".debug"])
def test_a_debug_link_is_followed(stripped: Stripped, beside: str) -> None:
    file = stripped.bare.parent / beside / stripped.debug.name
    file.parent.mkdir(exist_ok=True)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={stripped.debug}", stripped.bare], check=True)
    assert report(stripped.bare)["names"]["source"] in ("dynsym", "none")
    stripped.debug.rename(file)
    found = report(stripped.bare)
    assert (found["names"]["source"], Path(found["names"]["path"]).resolve()) == ("debug-file", file.resolve())
    assert found["keys"] == report(stripped.whole)["keys"]
    # One byte more, and its CRC is another one.
    with file.open("ab") as handle:
        handle.write(b"x")
    assert report(stripped.bare)["names"]["source"] in ("dynsym", "none")


def test_the_debug_file_of_another_program_is_refused(stripped: Stripped, built: Builder, tmp_path: Path) -> None:
    other = built("demo", "exec")
    said = refusal("report", "--debug-file", other, stripped.bare)
    assert f"has build id {report(other)['build_id']}" in said
    assert f"the file that it shall name has build id {stripped.build_id}" in said
    # Where a debugger would look for it, it is passed over.
    file = tmp_path / ".build-id" / stripped.build_id[:2] / f"{stripped.build_id[2:]}.debug"
    file.parent.mkdir(parents=True)
    file.symlink_to(other)
    assert report("--debug-dir", tmp_path, stripped.bare)["names"]["path"] is None


def test_a_debug_file_without_symbols_is_refused(stripped: Stripped) -> None:
    assert "has no symbol table" in refusal("report", "--debug-file", stripped.bare, stripped.bare)


def test_a_debug_file_without_build_id_is_refused(stripped: Stripped, tmp_path: Path) -> None:
    lost = tmp_path / "lost.debug"
    subprocess.run(["objcopy", "--remove-section=.note.gnu.build-id", stripped.whole, lost], check=True)
    assert "has no build id, the file that it shall name has build id" in refusal(
        "report", "--debug-file", lost, stripped.bare
    )


@pytest.mark.parametrize("field", ["entsize", "link"])
def test_a_damaged_debug_file_is_refused(stripped: Stripped, tmp_path: Path, field: str) -> None:
    elf = Elf(stripped.debug.read_bytes())
    elf.section(".symtab")[field] = 3
    damaged = tmp_path / "damaged.debug"
    damaged.write_bytes(elf.data)
    said = refusal("report", "--debug-file", damaged, stripped.bare)
    assert said.startswith(f"staticcall: {damaged}: symbol table .symtab ")


def test_two_sources_of_names_are_one_too_many(stripped: Stripped) -> None:
    both = staticcall("report", "--debug-file", stripped.debug, "--system-map", stripped.debug, stripped.bare)
    assert (both.code, both.err.count("\n")) == (2, 1)


# Lists of names


def nm(*options: str | Path) -> str:
    return subprocess.run(["nm", *options], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("options", [("-n",), (), ("-r",), ("-S",)], ids=" ".join)
def test_what_nm_prints_names_a_program(stripped: Stripped, tmp_path: Path, options: tuple[str, ...]) -> None:
    listing = tmp_path / "names"
    listing.write_text(nm(*options, stripped.whole))
    found = report("--system-map", listing, stripped.bare)
    assert found["names"] == {"source": "system-map", "path": str(listing)}
    same_but_for_names(found, report(stripped.whole))


def test_lines_that_are_no_names_are_refused(stripped: Stripped, tmp_path: Path) -> None:
    lines = nm("-n", stripped.whole).splitlines()
    listing = tmp_path / "names"
    for number, line, reason in (
        (4, "0000 T", "line 5 is not an address, a letter and a name (offset "),
        (0, "main.o:", "line 1 is not an address, a letter and a name (offset 0x0)"),
        (len(lines), "\x00\x01", f"line {len(lines) + 1} is not an address, a letter and a name (offset "),
    ):
        listing.write_text("\n".join([*lines[:number], line, *lines[number:]]))
        said = refusal("report", "--system-map", listing, stripped.bare)
        assert said.startswith(f"staticcall: {listing}: {reason}"), said


@pytest.mark.parametrize("text", ["", "\n\n", "                 U printf\n", "0000000000001000 Q a\n"])
def test_a_list_without_names_is_refused(stripped: Stripped, tmp_path: Path, text: str) -> None:
    listing = tmp_path / "names"
    listing.write_text(text)
    assert str(listing) in refusal("report", "--system-map", listing, stripped.bare)


def test_the_names_of_another_program_are_refused(stripped: Stripped, tmp_path: Path) -> None:
    lines = nm("-n", stripped.whole).splitlines(keepends=True)
    listing = tmp_path / "names"
    moved = [f"{int(line[:16], 16) + 0x30:016x}{line[16:]}" if line[0] != " " else line for line in lines]
    listing.write_text("".join(moved))
    said = refusal("report", "--system-map", listing, stripped.bare)
    assert "the names are not this file's: " in said
    assert "is no trampoline" in said


def test_names_are_used_wherever_there_are_options_for_them(stripped: Stripped, tmp_path: Path) -> None:
    """A key that only the debug file names is rewritten."""
    key = report(stripped.whole)["keys"][0]["name"]
    out = tmp_path / "out"
    unknown = staticcall("patch", "--set", f"{key}=NULL", "-o", out, stripped.bare)
    assert unknown.code != 0
    known = tool.staticcall("patch", "--debug-file", stripped.debug, "--bind", "--key", key, "-o", out, stripped.bare)
    assert (known.code, known.err) == (0, ""), known

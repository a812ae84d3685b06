"""The forms of a report on objects and archives, and that none of them has an address."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.objects import CASES, SOURCES, Objects, run
from tests.support.programs import COMPILERS
from tests.support.tool import report, report_document, staticcall, succeed, validate
from tests.support.toolchain import Compiler
from tests.support.user_objects import Workshop

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

# What objdump does not name: trampolines that are reached without a relocation against their name, and a function
# that is called an object.
_UNNAMED = ("chain", "nearby", "outside", "section_relative", "untyped")
_USUAL = [case for case in CASES if not case[0].startswith("many_")]
_OFTEN = [case for case in _USUAL if case[0] not in _UNNAMED]

# Where an object's sections are pretended to be, which nobody is to know.
_PRETENDED = re.compile(r"0x(?:ffffffff8[0-9a-f]{7}|4[0-9a-f]{5})\b")


def _named(cases: Iterable[tuple[str, Compiler]]) -> pytest.MarkDecorator:
    cases = list(cases)
    return pytest.mark.parametrize(("name", "compiler"), cases, ids=["-".join(case) for case in cases])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


# ---- what may not be said ----


@_named(_USUAL)
def test_no_form_of_a_report_names_an_address(name: str, compiler: Compiler, made: Objects) -> None:
    path = made(name, compiler)
    for options in (("-v",), ("--format", "json"), ("--format", "jsonl")):
        outcome = staticcall("report", *options, path)
        assert (outcome.code, outcome.err) == (0, "")
        assert not _PRETENDED.search(outcome.out)


_ODD = """
    .text
FUNCTION target
    ret
    END target
    DEFINE one, target
    DEFINE two, target
FUNCTION caller
1:  call __SCT__one
2:  call __SCT__two
3:  call target
4:  mov $5, %eax
5:  call .text + 1
    END caller
    .section static_call_sites, "aw", @progbits
    .irp where, 1b, 2b, 3b, 4b, 5b, 5b + 1, .data
    .long \\where - ., __SCK__one - .
    .endr
    .long 1b - ., __SCK__two - .
    .long 1b - ., .data + 4 - .
    .section .static_call.text, "ax", @progbits
    .globl __SCT__odd
__SCT__odd:
    call *__SCK__one(%rip)
    nop
    nop
    .data
    .globl __SCK__odd
__SCK__odd:
    .quad .text + 1
"""
_FINDINGS = {
    *("unknown-trampoline", "incoherent-key", "wrong-trampoline", "unaccepted-bytes", "stale-site"),
    *("site-not-executable", "duplicate-record", "overlapping-records"),
}


@pytest.mark.parametrize("kernel", [False, True], ids=["user", "kernel"])
def test_what_is_odd_is_said_without_addresses_and_with_the_files_own_bytes(kernel: bool, tmp_path: Path) -> None:
    source, path = tmp_path / "odd.S", tmp_path / "odd.o"
    text = f'#include "static_call.inc"\n{_ODD}'
    if kernel:
        text = (
            text.replace("static_call_sites", ".static_call_sites") + '.section .modinfo, "a"\n.asciz "license=GPL"\n'
        )
    source.write_text(text)
    run("gcc", f"-I{SOURCES}", "-c", source, "-o", path)
    image = report(path)
    assert {finding["code"] for finding in image["findings"]} == _FINDINGS
    assert {finding["address"] for finding in image["findings"]} == {None}
    messages = " ".join(finding["message"] for finding in image["findings"])
    content = path.read_bytes()
    shown = re.findall(r"\b[0-9a-f]{8,}\b", messages)
    assert shown
    assert all(bytes.fromhex(code) in content for code in shown), shown
    for options in (("-v",), ("-v", "--scan"), ("--format", "json"), ("--format", "json", "--scan")):
        outcome = staticcall("report", *options, path, "--fail-on", "never")
        assert (outcome.code, outcome.err) == (0, "")
        assert not _PRETENDED.search(outcome.out), _PRETENDED.findall(outcome.out)


# ---- the forms of a report ----


def test_each_form_of_a_report_is_valid_and_says_the_same(made: Objects) -> None:
    paths = [made(name, compiler) for name, compiler in _OFTEN]
    document = report_document(*paths)
    validate(document, "report")
    assert [image["path"] for image in document["images"]] == [str(path) for path in paths]
    lines = succeed("report", "--format", "jsonl", "-j", "2", *paths).splitlines()
    assert [json.loads(line) for line in lines] == document["images"]


def test_the_text_has_sections_instead_of_addresses(workshop: Workshop) -> None:
    path = workshop.object()
    lines = succeed("report", path).splitlines()
    assert lines[:4] == [
        str(path),
        "  REL x86_64",
        "  table in static_call_sites",
        "  24 sites, 4 keys (4 with sites), 4 trampolines",
    ]
    (undecided,) = (line.split() for line in lines if line.startswith("  undecided"))
    assert undecided[1] == "1"
    assert any(line.split()[:2] == ["alpha", "13"] and line.endswith("plus_one") for line in lines)


def test_an_archive_is_as_many_images_as_it_has_objects(made: Objects, tmp_path: Path) -> None:
    library, text = tmp_path / "lib.a", tmp_path / "text.txt"
    text.write_text("no object\n")
    parts = [made("calls"), made("calls-function_sections", "clang"), made("no_sites")]
    run("ar", "rcsD", library, parts[0], text, *parts[1:])
    document = report_document(library)
    validate(document, "report")
    assert [image["path"] for image in document["images"]] == [f"{library}({path.name})" for path in parts]
    for path, image in zip(parts, document["images"], strict=True):
        assert {**image, "path": str(path)} == report(path)
    shown = succeed("report", library)
    assert [f"{library}({path.name})" in shown for path in parts] == [True, True, True]
    assert not _PRETENDED.search(shown)


def test_objects_archives_and_programs_can_be_given_together(workshop: Workshop, made: Objects, tmp_path: Path) -> None:
    library = tmp_path / "lib.a"
    run("ar", "rcsD", library, made("calls"), made("two_keys"))
    program = workshop.link(workshop.object())
    images = report_document(library, program, workshop.object())["images"]
    assert [image["elf_type"] for image in images] == ["REL", "REL", "EXEC", "REL"]


def test_a_linked_program_has_the_sites_of_its_object(workshop: Workshop) -> None:
    for compiler in COMPILERS:
        path = workshop.object(compiler)
        program = report(workshop.link(path, "mold", "pie"))
        one, other = (
            sorted((site["record"], site["key"], site["tail"]) for site in image["sites"])
            for image in (report(path), program)
        )
        assert one == other


def test_an_object_that_names_the_ends_of_a_linked_table_has_none(tmp_path: Path) -> None:
    """As the kernel's own code for static calls does, and any program that walks its table."""
    source, path = tmp_path / "walk.c", tmp_path / "walk.o"
    source.write_text(
        "extern int __start_static_call_sites[], __stop_static_call_sites[];\n"
        "long walk(void) { return __stop_static_call_sites - __start_static_call_sites; }\n"
    )
    subprocess.run(["gcc", "-O2", "-c", source, "-o", path], check=True)
    assert report(path)["sites"] == []

"""Reports on relocatable objects, held against objdump, readelf and a linker that puts the sections where it likes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support import disassembly, elf_object
from tests.support.elf_object import Object
from tests.support.objects import CASES, MANY_SECTIONS, SOURCES, Objects, run
from tests.support.programs import COMPILERS
from tests.support.tool import POLICIES, Json, report, report_document, staticcall, succeed, validate
from tests.support.toolchain import Compiler
from tests.support.user_objects import Workshop

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

# What objdump does not name: trampolines that are reached without a relocation against their name, and a function
# that is called an object.
_UNNAMED = ("chain", "nearby", "outside", "section_relative")
_NO_SITES = ("no_sites",)
_USUAL = [case for case in CASES if not case[0].startswith("many_")]
_OFTEN = [case for case in _USUAL if case[0] not in _UNNAMED]

# Where an object's sections are pretended to be, which nobody is to know.
_PRETENDED = re.compile(r"0x(?:ffffffff8[0-9a-f]{7}|4[0-9a-f]{5})\b")
_SECONDS = 10  # for what takes one or two on a machine that does nothing else


def _named(cases: Iterable[tuple[str, Compiler]]) -> pytest.MarkDecorator:
    cases = list(cases)
    return pytest.mark.parametrize(("name", "compiler"), cases, ids=["-".join(case) for case in cases])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


def _by_place(elf: Object, image: Json) -> dict[tuple[int, int], Json]:
    """The sites of a report by section number and offset; a section is known by where it lies in the file."""
    numbers = {(section.name, section.offset): section.number for section in elf.sections if section.content}
    return {
        (numbers[site["section"], site["file_offset"] - site["offset"]], site["offset"]): site
        for site in image["sites"]
    }


# ---- what is a site, and where ----


@_named(_OFTEN)
def test_the_sites_of_an_object_are_those_that_objdump_shows(name: str, compiler: Compiler, made: Objects) -> None:
    path = made(name, compiler)
    elf, expected = elf_object.read(path), disassembly.sites(path)
    found = _by_place(elf, report(path))
    assert found.keys() == {(site.section, site.offset) for site in expected}
    assert bool(found) is (name not in _NO_SITES)
    for site in expected:
        one = found[site.section, site.offset]
        assert (one["address"], one["record"], one["sources"]) == (None, None, ["relocation"])
        assert (one["key"], one["form"]) == (site.key, site.form)
        if site.form != "unknown":
            assert (one["bytes"], one["length"]) == (site.code.hex(), len(site.code))
            assert (one["tail"], one["destination"]) == (site.tail, f"__SCT__{site.key}")
        content = elf.sections[site.section].content[site.offset :]
        assert content.startswith(bytes.fromhex(one["bytes"]))


@_named(_OFTEN)
def test_a_site_is_in_the_function_whose_symbol_covers_it(name: str, compiler: Compiler, made: Objects) -> None:
    path = made(name, compiler)
    elf = elf_object.read(path)
    found = _by_place(elf, report(path))
    assert {place: site["function"] for place, site in found.items()} == {
        place: disassembly.function_at(elf, *place) for place in found
    }


@pytest.mark.parametrize(
    ("name", "places"),
    [
        # The start of every trampoline, reached by section and offset.
        ("section_relative", {16: ("call", "one"), 21: ("call", "two"), 28: ("jcc", "two"), 34: ("tail_jmp", "one")}),
        # Without any relocation, and the jumps as short as they may be.
        (
            "nearby",
            {
                16: ("call", "near"),
                23: ("jcc", "near"),
                29: ("jcc", "near"),
                31: ("short_jmp", "near"),
                48: ("tail_jmp", "near"),
                64: ("short_jmp", "near"),
            },
        ),
    ],
)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_trampolines_are_sites_goals_without_a_relocation_against_their_name(
    name: str, places: dict[int, tuple[str, str]], compiler: Compiler, made: Objects
) -> None:
    sites = report(made(name, compiler))["sites"]
    assert {site["offset"]: (site["form"], site["key"]) for site in sites} == places
    assert {site["section"] for site in sites} == {".text"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_trampoline_that_jumps_to_a_trampoline_is_a_site(compiler: Compiler, made: Objects) -> None:
    sites = report(made("chain", compiler))["sites"]
    assert {(site["section"], site["key"], site["tail"]) for site in sites} == {
        (".static_call.text", "last", True),
        (".text", "first", False),
    }


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_trampoline_whose_address_is_taken_is_no_site(compiler: Compiler, made: Objects) -> None:
    """Of more than ten relocations against the trampoline in code one is a call."""
    path = made("address_taken", compiler)
    elf = elf_object.read(path)
    (text,) = elf.named(".text")
    against = [e for e in elf.relocations_of(text) if elf.symbols[e.symbol].name == "__SCT__one"]
    assert len(against) > 10
    (site,) = report(path)["sites"]
    assert (site["form"], site["bytes"]) == ("call", "e800000000")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_calls_through_the_got_are_sites_whatever_type_their_relocation_has(compiler: Compiler, tmp_path: Path) -> None:
    source = tmp_path / "types.S"
    types = ("R_X86_64_GOTPCREL", "R_X86_64_GOTPCRELX", "R_X86_64_REX_GOTPCRELX")
    code = [
        f"1: .byte 0xff, {op}, 0, 0, 0, 0; .reloc 1b + 2, {kind}, __SCT__one - 4"
        for op, kind in product((0x15, 0x25), types)
    ]
    lines = [
        '#include "static_call.inc"',
        "DECLARE one",
        ".data",
        ".quad __SCT__one",
        ".text",
        "FUNCTION all",
        *code,
        "END all",
    ]
    source.write_text("\n".join(lines) + "\n")
    run(compiler, f"-I{SOURCES}", "-c", source, "-o", tmp_path / "types.o")
    sites = report(tmp_path / "types.o")["sites"]
    assert [(site["offset"], site["form"]) for site in sites] == [
        (6 * number, "indirect_call" if number < len(types) else "indirect_jmp") for number in range(2 * len(types))
    ]
    assert {site["destination"] for site in sites} == {"__SCT__one"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_real_compilers_make_each_form_that_is_looked_for(compiler: Compiler, made: Objects) -> None:
    """The corpus is worth its time."""
    found = {
        (site.form, site.relocation)
        for name in ("calls", "calls-no_plt", "conditional", "prefixed")
        for site in disassembly.sites(made(name, compiler))
    }
    plain = {(form, "PLT32") for form in ("call", "tail_jmp", "jcc", "prefixed_call")}
    assert found >= plain | {("indirect_call", "GOTPCRELX"), ("indirect_jmp", "GOTPCRELX")}


# ---- tables, keys and findings ----


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        ("tail_calls", "gcc"),
        ("calls", "clang"),
        ("inline_one", "gcc"),
        ("inline_two", "clang"),
        ("combined-bfd", "gcc"),
    ],
)
@pytest.mark.parametrize("module", [False, True], ids=["built-in", "module"])
def test_an_annotated_site_has_both_sources_and_its_record(
    name: str, compiler: Compiler, module: bool, made: Objects, tmp_path: Path
) -> None:
    """Also where groups have tables of their own: records count on from one to the next, as sections do."""
    annotated = tmp_path / "annotated.o"
    succeed("annotate", made(name, compiler), "-o", annotated, *(["--module"] if module else []))
    elf = elf_object.read(annotated)
    records = elf_object.records(elf)
    assert len(records) > 3
    image = report(annotated)
    found = _by_place(elf, image)
    assert {place: site["record"] for place, site in found.items()} == {
        (record.section_number, record.offset): number for number, record in enumerate(records)
    }
    for site in found.values():
        record = records[site["record"]]
        assert site["sources"] == ["table", "relocation"]
        assert (f"__SCK__{site['key']}", site["tail"]) == (record.key, bool(record.flags))
    assert "no-table" not in {finding["code"] for finding in image["findings"]}


def test_groups_have_several_tables(made: Objects, tmp_path: Path) -> None:
    succeed("annotate", made("inline_two"), "-o", tmp_path / "annotated.o")
    assert len(elf_object.tables(elf_object.read(tmp_path / "annotated.o"))) > 1


def test_records_that_name_the_trampoline_lead_to_the_static_call_of_that_name(made: Objects, tmp_path: Path) -> None:
    annotated = tmp_path / "annotated.o"
    succeed("annotate", "--module", made("no_key"), "-o", annotated)
    named = {record.key for record in elf_object.records(elf_object.read(annotated))}
    assert named == {"__SCK__known", "__SCT__unknown", "__SCT__other"}
    image = report(annotated)
    assert sorted(site["key"] for site in image["sites"]) == ["known", "known", "other", "unknown", "unknown"]
    assert {site["trampoline"] for site in image["sites"]} == {"known", "unknown", "other"}
    assert {(key["name"], key["defined"], key["func"], key["sites"]) for key in image["keys"]} == {
        ("known", False, None, 2),
        ("unknown", False, None, 2),
        ("other", False, None, 1),
    }


@_named(_USUAL)
def test_an_object_without_a_table_has_a_note_of_that_and_no_error(
    name: str, compiler: Compiler, made: Objects
) -> None:
    image = report(made(name, compiler))
    notes = [finding for finding in image["findings"] if finding["code"] == "no-table"]
    assert [(note["severity"], note["address"]) for note in notes] == [("note", None)] * bool(image["sites"])
    assert "error" not in {finding["severity"] for finding in image["findings"]}
    assert image["elf_type"] == "REL"


@_named(_OFTEN)
def test_a_key_is_defined_if_its_symbol_is_and_leads_where_its_relocation_does(
    name: str, compiler: Compiler, made: Objects
) -> None:
    path = made(name, compiler)
    elf, prefix = elf_object.read(path), "__SCK__"
    expected = {
        symbol.name.removeprefix(prefix): (bool(symbol.section), _target(elf, symbol))
        for symbol in elf.symbols
        if symbol.name.startswith(prefix)
    }
    found = {key["name"]: (key["defined"], key["func"]) for key in report(path)["keys"]}
    # What has no key's symbol is known by its trampoline.
    assert {key: one for key, one in found.items() if key in expected} == expected
    assert {one for key, one in found.items() if key not in expected} <= {(False, None), (True, None)}


def _target(elf: Object, key: elf_object.Symbol) -> str | None:
    for entry in elf.relocations_of(elf.sections[key.section]) if key.section else ():
        if entry.offset == key.value:
            return elf.symbols[entry.symbol].name
    return None


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_key_that_leads_to_a_function_without_a_symbol_says_section_and_offset(
    compiler: Compiler, tmp_path: Path
) -> None:
    source = tmp_path / "nameless.S"
    lines = [
        '#include "static_call.inc"',
        "DEFINE one, 1f",
        ".text",
        "nop",
        "1: ret",
        "FUNCTION f",
        "call __SCT__one",
        "END f",
    ]
    source.write_text("\n".join(lines) + "\n")
    run(compiler, f"-I{SOURCES}", "-c", source, "-o", tmp_path / "nameless.o")
    (key,) = report(tmp_path / "nameless.o")["keys"]
    assert key["func"] == ".text+0x1"
    assert ".text+0x1" in succeed("report", tmp_path / "nameless.o")


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


@pytest.mark.parametrize(("name", "compiler"), [case for case in CASES if case[0].startswith("many_")])
def test_more_sections_than_16_bits_count_take_a_moment(name: str, compiler: Compiler, made: Objects) -> None:
    path = made(name, compiler)
    start = time.monotonic()
    image = report(path)
    assert time.monotonic() - start < _SECONDS
    elf = elf_object.read(path)
    found = _by_place(elf, image)
    assert found.keys() == {(site.section, site.offset) for site in disassembly.sites(path)}
    assert len(elf.sections) > MANY_SECTIONS
    assert len([number for number, _ in found if number > 0xFF00]) > 20


def test_many_function_sections_take_a_moment(tmp_path: Path) -> None:
    """Five thousand functions in sections of their own, each with a call and its relocations."""
    count, path = 5_000, tmp_path / "many.o"
    functions = (f'.section .text.f{n}, "ax"\nFUNCTION f{n}\ncall __SCT__one\nEND f{n}' for n in range(count))
    text = "\n".join(['#include "static_call.inc"', "DEFINE one, f0", *functions, ""])
    (tmp_path / "many.S").write_text(text)
    run("gcc", f"-I{SOURCES}", "-c", tmp_path / "many.S", "-o", path)
    start = time.monotonic()
    succeed("report", path)
    assert time.monotonic() - start < _SECONDS
    assert report(path)["summary"]["sites"] == count


# ---- three answers about cache lines ----

_LINES = (32, 64, 128)
_ALIGNMENTS = tuple(1 << power for power in range(13))


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A section for each alignment, with calls and jumps at offsets that matter for one line or another."""
    folder = tmp_path_factory.mktemp("placed")
    lines = ['#include "static_call.inc"', "DEFINE one, target", ".text", "FUNCTION target", "ret", "END target"]
    for alignment in _ALIGNMENTS:
        lines += [
            f'.section .text.a{alignment}, "ax", @progbits',
            f".balign {alignment}",
            f".type a{alignment}, @function",
        ]
        lines += [f"a{alignment}:"]
        for number, instruction in enumerate(_instructions()):
            tail = int("j" in instruction)
            lines += [f".org a{alignment} + {65 * number}, 0x90", f"1: {instruction}"]
            lines += [
                '.pushsection static_call_sites, "aw", @progbits',
                ".balign 4",
                ".long 1b - .",
                f".long __SCK__one - . + {tail}",
                ".popsection",
            ]
        lines += [f"END a{alignment}"]
    (folder / "placed.S").write_text("\n".join(lines) + "\n")
    run("gcc", f"-I{SOURCES}", "-c", folder / "placed.S", "-o", folder / "placed.o")
    return folder / "placed.o"


@pytest.fixture(scope="module")
def shown(placed: Path) -> list[disassembly.Site]:
    return disassembly.sites(placed)


def _instructions() -> list[str]:
    """For each offset in a line of 128, since each is to be 65 bytes behind the one before; calls for the most part."""
    call, others = "call __SCT__one", (".byte 0x2e; call __SCT__one", "jmp __SCT__one", "js __SCT__one")
    return [others[number // 5 % 3] if number % 5 == 4 else call for number in range(128)]


@pytest.mark.parametrize("line", _LINES)
@pytest.mark.parametrize("policy", POLICIES)
def test_verdicts_hold_for_every_place_that_the_sections_alignment_allows(
    policy: str, line: int, placed: Path, shown: list[disassembly.Site]
) -> None:
    elf = elf_object.read(placed)
    assert len(shown) == 128 * len(_ALIGNMENTS)
    image = report("--policy", policy, "--line", str(line), placed)
    found = _by_place(elf, image)
    seen: set[Any] = set()
    for site in shown:
        one, alignment = found[site.section, site.offset], elf.sections[site.section].alignment
        crossing = disassembly.crossings(site.offset, len(site.code), alignment, line)
        answer = disassembly.verdict(site, policy, alignment, line)
        assert one["crosses_line"] is (None if len(crossing) > 1 else True in crossing), (site, alignment)
        assert one["verdict"] == answer, (site, alignment)
        assert (one["reason"] == "depends-on-address") is (answer == "undecided")
        seen |= {one["crosses_line"], answer}
    expected = {"direct", "trampoline"} | ({"undecided"} if policy in ("lutomirski", "rel32", "block8") else set())
    assert seen == {True, False, None} | expected
    verdicts = [site["verdict"] for site in image["sites"]]
    summary = image["summary"]
    assert [summary[kind] for kind in ("direct", "trampoline", "undecided")] == [
        verdicts.count(kind) for kind in ("direct", "trampoline", "undecided")
    ]
    assert summary["crossing"] == sum(site["crosses_line"] is True for site in image["sites"])


@pytest.mark.parametrize("start", [0, 1, 7, 16, 40, 59, 4096])
def test_no_linker_contradicts_a_definite_answer(start: int, placed: Path, tmp_path: Path) -> None:
    """The sections are linked to places that differ by so much from a round one.

    What is said of them there is what was said of the object, or a decision of what was left open.
    """
    program, script = tmp_path / "placed", tmp_path / "script"
    lines = ["SECTIONS {", "static_call_sites 0x400000 : { *(static_call_sites) }"]
    for number, alignment in enumerate(_ALIGNMENTS):
        name, address = f".text.a{alignment}", 0x500000 + 0x10000 * number + start
        # The address of the output section is taken as it is; its contents start where their alignment allows.
        lines.append(f"{name} {address:#x} : {{ *({name}) }}")
    script.write_text("\n".join([*lines, "}"]) + "\n")
    run("ld.bfd", "-e", "0", "-z", "noexecstack", "--no-warn-rwx-segments", "-T", script, placed, "-o", program)
    for policy in POLICIES:
        before, after = (
            {s["record"]: s for s in report("--policy", policy, path)["sites"]} for path in (placed, program)
        )
        assert before.keys() == after.keys()
        assert {(site["crosses_line"], after[number]["crosses_line"]) for number, site in before.items()} <= {
            *((answer, answer) for answer in (True, False)),
            *((None, answer) for answer in (True, False)),
        }
        assert {(site["verdict"], after[number]["verdict"]) for number, site in before.items()} <= {
            *((answer, answer) for answer in ("direct", "trampoline")),
            *(("undecided", answer) for answer in ("direct", "trampoline")),
        }
        assert all(site["verdict"] != "undecided" for site in after.values())
    crossing = {
        disassembly.crossings(int(s["address"], 16), s["length"], 1 << 20, 64) == {s["crosses_line"]}
        for s in after.values()
    }
    assert crossing == {True}

"""Reports on relocatable objects, held against objdump, readelf and a linker that puts the sections where it likes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest

from tests.support import disassembly, elf_object
from tests.support.elf_object import Object
from tests.support.objects import CASES, MANY_SECTIONS, SOURCES, Objects, run
from tests.support.programs import COMPILERS
from tests.support.tool import Json, report, succeed
from tests.support.toolchain import Compiler
from tests.support.user_objects import Workshop

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

# What objdump does not name: trampolines that are reached without a relocation against their name, and a function
# that is called an object.
_UNNAMED = ("chain", "nearby", "outside", "section_relative", "untyped")
_NO_SITES = ("no_sites",)
_USUAL = [case for case in CASES if not case[0].startswith("many_")]
_OFTEN = [case for case in _USUAL if case[0] not in _UNNAMED]

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
        # Jumps from between symbols that have a size and no type, but for those to another object's trampoline.
        (
            "untyped",
            {
                12: ("call", "one"),
                17: ("call", "elsewhere"),
                22: ("jcc", "one"),
                34: ("jcc", "near"),
                40: ("jcc", "one"),
                46: ("tail_jmp", "one"),
                51: ("call", "one"),
            },
        ),
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


# ---- size ----


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

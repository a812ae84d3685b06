"""Relocatable objects and archives of them that are damaged at one place: refused in one line, or still done right.

First one by one what was once taken, or refused too late, then every field of every header and table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support import elf_object
from tests.support.archives import packed
from tests.support.elf_edit import Elf
from tests.support.object_bench import (
    Bench,
    keeps_what_there_was,
    no_more_warnings,
    ways_to_annotate,
    ways_to_patch,
    ways_to_report,
)
from tests.support.object_mutations import (
    SIGNATURE_MARK,
    edited,
    field_of,
    hostile,
    overwritten,
    parts_of,
    signed,
    truncated,
    with_names,
    with_section,
    with_wide_numbers,
)
from tests.support.objects import Objects, run
from tests.support.refusals import INPUT, UNSAFE, UNVERIFIED, Arguments
from tests.support.tool import succeed

MEGABYTE = 1 << 20
LAST = (1 << 64) - 1
Damage = Callable[[bytes], bytes]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    folder = tmp_path / "bench"
    folder.mkdir()
    return Bench(folder)


@pytest.fixture(scope="module")
def objects(made: Objects, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Sound objects of several kinds; of those that have a table, their keys and trampolines too."""
    annotated = tmp_path_factory.mktemp("annotated") / "annotated.o"
    succeed("annotate", made("two_keys"), "-o", annotated)
    # What is imported late takes memory of its own.
    succeed("patch", annotated, "--bind", "-o", annotated.with_name("bound.o"))
    succeed("verify", "--deep", annotated, annotated)
    succeed("report", "--scan", "--format", "json", annotated)
    return {
        "calls": made("calls-kernel").read_bytes(),
        "groups": made("inline_one", "clang").read_bytes(),
        "numbers": made("clang_tables", "clang").read_bytes(),
        "two keys": made("two_keys").read_bytes(),
        "relative": made("section_relative").read_bytes(),
        "wide": with_wide_numbers(made("calls", "clang").read_bytes()),
        "annotated": annotated.read_bytes(),
    }


# ---- what was once taken, or refused too late ----


def _twice(content: bytes, role: str) -> bytes:
    """A second relocation for the place of the first one."""
    values = {name: field_of(content, role, name, 0) for name in ("offset", "type", "symbol", "addend")}
    return edited(content, role, 1, **values)


def _claiming(content: bytes, count: int) -> bytes:
    """Section 0 says how many sections there are."""
    elf = Elf(content)
    elf.section(0)["size"] = count
    elf.header["shnum"] = 0
    return bytes(elf.data)


def _counted_twice(content: bytes) -> bytes:
    elf = Elf(content)
    elf.section(0)["size"] = elf.header["shnum"]
    return bytes(elf.data)


def _one_more(content: bytes, role: str, name: str) -> bytes:
    return edited(content, role, **{name: field_of(content, role, name) + 1})


def _symbols_of(content: bytes) -> range:
    """The numbers of all symbols."""
    return range(field_of(content, "symbols", "size") // 24)


def _trampoline(content: bytes) -> int:
    """The number of the first trampoline's symbol."""
    names = parts_of(content)["names"].span.offset
    return next(
        number
        for number in _symbols_of(content)
        if content.startswith(b"__SCT__", names + field_of(content, "symbols", "name", number))
    )


def _moved_section_symbol(content: bytes) -> bytes:
    (number, *_) = (
        n for n in _symbols_of(content) if field_of(content, "symbols", "info", n) == elf_object.STT_SECTION
    )
    for other in range(number, field_of(content, "symbols", "info")):
        content = edited(content, "symbols", other, value=0x10)
    return content


def _all(content: bytes, role: str, byte: bytes) -> bytes:
    return overwritten(content, role, byte * parts_of(content)[role].span.size)


# By what is wrong: the object, what is done to it, and what has to be said.
REFUSED: Final[Mapping[str, tuple[str, Damage, str]]] = {
    "two symbol tables": ("calls", lambda c: with_section(c, "symbols"), "2 symbol tables"),
    "more local symbols than symbols": ("calls", lambda c: edited(c, "symbols", info=99), "99 local symbols"),
    "no local symbols": ("calls", lambda c: edited(c, "symbols", info=0), "local symbols"),
    "one local symbol too many": ("calls", lambda c: _one_more(c, "symbols", "info"), "local symbols"),
    "a symbol table with another link": ("calls", lambda c: edited(c, "symbols", link=0), "no string table"),
    "half a symbol": ("calls", lambda c: _one_more(c, "symbols", "size"), "no array"),
    "names without an end": ("calls", lambda c: overwritten(c, "names", b"A", -1), "string table"),
    "section names without an end": ("calls", lambda c: overwritten(c, "section names", b"A" * 9, -9), "string table"),
    "a name for the nameless": ("calls", lambda c: overwritten(c, "names", b"A"), "to what has none"),
    "half a relocation": ("calls", lambda c: _one_more(c, "relocations of code", "size"), "no array"),
    "relocations without symbols": ("calls", lambda c: edited(c, "relocations of code", link=1), "no symbol table"),
    "relocations of no section": ("calls", lambda c: edited(c, "relocations of code", info=999), "section 999"),
    "relocations of an older kind": ("numbers", lambda c: edited(c, "other relocations", type=9), "no array"),
    "300,000 sections": ("calls", lambda c: _claiming(c, 300_000), "300000 entries"),
    "all sections there could be": ("calls", lambda c: _claiming(c, LAST), "beyond the end"),
    "sections counted in two places": ("calls", _counted_twice, "section 0"),
    "a section behind the end": ("calls", lambda c: edited(c, "code", offset=1 << 63), "beyond the end"),
    "a signature larger than the file": ("calls", lambda c: signed(c, said=1 << 31), "larger than the file"),
    "a section inside of another": (
        "calls",
        lambda c: edited(c, "data", offset=field_of(c, "code", "offset") + 1),
        "overlaps",
    ),
    "a section in the header": ("calls", lambda c: edited(c, "code", offset=40), "overlaps"),
    "more section numbers than symbols": ("wide", lambda c: _one_more(c, "section numbers", "size"), "does not fit"),
}
# The same for what only matters where something is written.
NOT_ANNOTATED: Final[Mapping[str, tuple[str, Damage, str]]] = {
    "a relocation outside of its section": (
        "calls",
        lambda c: edited(c, "relocations of code", 1, offset=1 << 56, symbol=_trampoline(c)),
        "does not exist",
    ),
    "a relocation of no symbol": (
        "two keys",
        lambda c: edited(c, "other relocations", 0, symbol=len(_symbols_of(c))),
        "does not exist",
    ),
    "two relocations of one call": ("two keys", lambda c: _twice(c, "relocations of code"), "two relocations"),
    "a section's symbol of another place": ("relative", _moved_section_symbol, "its start"),
    "a group of sections that do not exist": ("groups", lambda c: edited(c, "group", -1, word=999), "does not exist"),
    "a group of section 0": ("groups", lambda c: edited(c, "group", -1, word=0), "does not exist"),
    "half a member of a group": ("groups", lambda c: edited(c, "group", size=5), "does not exist"),
    "a list without an end": ("numbers", lambda c: overwritten(c, "addrsig", b"\x80", -1), "no list"),
    "a list of numbers without an end": ("numbers", lambda c: _all(c, "addrsig", b"\xff"), "no list"),
    "a list of symbols that do not exist": ("numbers", lambda c: overwritten(c, "addrsig", b"\x7f"), "does not exist"),
    "names of an odd alignment": ("calls", lambda c: edited(c, "section names", addralign=3), "alignment"),
    "names of a huge alignment": ("calls", lambda c: edited(c, "section names", addralign=1 << 40), "alignment"),
    "a damaged signature": ("calls", lambda c: signed(c)[:-2] + b"?\n", "behind its last section"),
    "half a signature": ("calls", lambda c: signed(c)[: -len(SIGNATURE_MARK)], "behind its last section"),
    "a signed module": ("calls", signed, "signed"),
    "a header's version": ("calls", lambda c: c[:6] + b"\2" + c[7:], "version"),
}


@pytest.mark.parametrize("archived", [False, True], ids=["object", "archive"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_object_is_refused_by_every_command(
    case: str, archived: bool, bench: Bench, objects: Mapping[str, bytes]
) -> None:
    name, damage, words = REFUSED[case]
    bench.put(objects[name], damage(objects[name]))
    if archived:
        good, bad = bench.good.read_bytes(), bench.bad.read_bytes()
        bench.put(packed((b"good.o/", good), (b"same.o/", good)), packed((b"good.o/", good), (b"bad.o/", bad)))
    for arguments in (*ways_to_annotate(bench), *ways_to_report(bench), *([] if archived else ways_to_patch(bench))):
        line = bench.run(*arguments, codes={INPUT}).err
        assert words in line
        assert f"{bench.bad}(bad.o): " in line if archived else f"{bench.bad}: " in line
    bench.run("verify", bench.good, bench.bad, codes={INPUT, UNVERIFIED})
    # Some of it is nothing to a proof, as long as it is gone.
    bench.run("verify", bench.bad, bench.good, codes={0, INPUT, UNVERIFIED})


@pytest.mark.parametrize("archived", [False, True], ids=["object", "archive"])
@pytest.mark.parametrize("case", NOT_ANNOTATED)
def test_a_damaged_object_is_not_annotated(
    case: str, archived: bool, bench: Bench, objects: Mapping[str, bytes]
) -> None:
    name, damage, words = NOT_ANNOTATED[case]
    bench.put(objects[name], damage(objects[name]))
    if archived:
        bench.put(bench.good.read_bytes(), packed((b"bad.o/", bench.bad.read_bytes())))
    for arguments in ways_to_annotate(bench):
        assert words in bench.run(*arguments, codes={INPUT}).err
    for arguments in ways_to_report(bench):
        bench.run(*arguments, codes={0, 1, INPUT})
    if not archived:
        for arguments in ways_to_patch(bench):
            bench.run(*arguments, codes={0, INPUT, UNSAFE})
            bench.put(objects[name], damage(objects[name]))


# What a table may have wrong: the section of the table, or one of its relocations.
TABLES: Final[Mapping[str, Damage]] = {
    "a size that is no multiple of 8": lambda c: _one_more(c, "table", "size"),
    "a size that is one record too small": lambda c: edited(c, "table", size=field_of(c, "table", "size") - 8),
    "no relocations": lambda c: edited(c, "relocations of the table", size=0),
    "relocations of another section": lambda c: edited(c, "relocations of the table", info=1),
    "a record's site twice": lambda c: _twice(c, "relocations of the table"),
    "a record without a site": lambda c: edited(c, "relocations of the table", 0, type=0),
    "a record without a key": lambda c: edited(c, "relocations of the table", 1, type=0),
    "a site by another type": lambda c: edited(c, "relocations of the table", 0, type=10),
    "a site behind its section": lambda c: edited(c, "relocations of the table", 0, addend=1 << 40),
    "a site before its section": lambda c: edited(c, "relocations of the table", 0, addend=LAST - 99),
    "a site in the middle of a call": lambda c: edited(
        c, "relocations of the table", 0, addend=field_of(c, "relocations of the table", "addend", 0) + 1
    ),
    "a site of no symbol": lambda c: edited(c, "relocations of the table", 0, symbol=1 << 24),
    "a key of no symbol": lambda c: edited(c, "relocations of the table", 1, symbol=1 << 24),
    "a key that is none": lambda c: edited(c, "relocations of the table", 1, symbol=0),
    "other flags": lambda c: edited(c, "relocations of the table", 1, addend=7),
    "a table without bytes": lambda c: edited(c, "table", type=elf_object.SHT_NOBITS),
    "two tables at one place": lambda c: with_section(c, "table"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_damaged_table_is_no_reason_to_stumble(case: str, bench: Bench, objects: Mapping[str, bytes]) -> None:
    good = objects["annotated"]
    bad = TABLES[case](good)
    bench.put(good, bad)
    for arguments in ways_to_report(bench):
        bench.run(*arguments, codes={0, 1, INPUT})
    for arguments in ways_to_patch(bench):
        outcome = bench.run(*arguments, codes={0, INPUT, UNSAFE, UNVERIFIED})
        if outcome.code == 0 and bench.out.exists():
            bench.run("verify", bench.bad, bench.out, codes={0})
        bench.put(good, bad)
    bench.run("verify", bench.good, bench.bad, codes={INPUT, UNVERIFIED})
    bench.run("annotate", bench.bad, "-o", bench.out, codes={0, INPUT})


def test_records_out_of_order_are_reported_by_where_they_lead(bench: Bench, objects: Mapping[str, bytes]) -> None:
    good = objects["annotated"]
    role = "relocations of the table"
    bad = good
    for one, other in ((0, 2), (1, 3)):
        for name in ("type", "symbol", "addend"):
            bad = edited(bad, role, one, **{name: field_of(good, role, name, other)})
            bad = edited(bad, role, other, **{name: field_of(good, role, name, one)})
    bench.put(good, bad)
    bench.run("report", bench.bad, codes={0, 1})
    bench.run("verify", bench.bad, bench.bad, codes={0})


def test_a_proof_says_which_of_the_two_files_is_broken(bench: Bench, objects: Mapping[str, bytes]) -> None:
    broken = edited(objects["calls"], "symbols", info=99)
    bench.put(objects["calls"], broken)
    assert f"{bench.bad}: " in bench.run("verify", bench.bad, bench.good, codes={INPUT}).err
    assert f"{bench.bad}: " in bench.run("verify", bench.good, bench.bad, codes={UNVERIFIED}).err


@pytest.mark.parametrize("piece", [b"A", b"__SCT__", b"__SCK__"])
def test_names_that_share_their_ends_take_neither_time_nor_memory(
    piece: bytes, bench: Bench, objects: Mapping[str, bytes]
) -> None:
    """All names together have gigabytes, though the file has one."""
    good = objects["annotated"]
    bad = with_names(good, piece, MEGABYTE // len(piece), 20_000)
    bench.put(good, bad)
    for arguments in (*ways_to_annotate(bench), *ways_to_report(bench), *ways_to_patch(bench)):
        bench.run(*arguments, codes={0, INPUT, UNSAFE})
        bench.put(good, bad)
    for pair in ((bench.bad, bench.bad), (bench.good, bench.bad), (bench.bad, bench.good)):
        bench.run("verify", *pair, codes={0, INPUT, UNVERIFIED})


def test_prefixed_calls_without_end_take_no_time(bench: Bench, objects: Mapping[str, bytes], tmp_path: Path) -> None:
    """The start of none of them is known but by decoding from the function's."""
    source, target = tmp_path / "prefixed.S", tmp_path / "prefixed.o"
    call = [".byte 0x2e, 0xe8", ".reloc ., R_X86_64_PC32, __SCT__one - 4", ".long 0", ".fill 20, 1, 0x90"]
    lines = [".type f, @function", "f:", ".rept 5000", *call, ".endr", ".size f, . - f", ".quad __SCK__one"]
    source.write_text("\n".join(lines) + "\n")
    run("gcc", "-c", source, "-o", target)
    bench.put(objects["calls"], target.read_bytes())
    assert "5,000 records" in bench.run("annotate", bench.bad, "-o", bench.out, codes={0}).out


def test_a_name_that_is_no_text_is_no_reason_to_refuse(bench: Bench, objects: Mapping[str, bytes]) -> None:
    good = objects["annotated"]
    bad = good.replace(b"\0both\0", b"\0b\xfft\x1b\0")
    assert bad != good
    bench.put(good, bad)
    bench.run("patch", bench.bad, "--set", "one=second_target", "-o", bench.out, codes={0})
    bench.run("verify", "--deep", bench.bad, bench.out, codes={0})


@pytest.mark.parametrize("prefix", [b"__SCK__", b"__SCT__"])
def test_a_key_or_a_trampoline_alone_is_not_patched(prefix: bytes, bench: Bench, objects: Mapping[str, bytes]) -> None:
    good = objects["annotated"]
    bench.put(good, good.replace(b"\0" + prefix + b"one\0", b"\0" + prefix + b"eno\0"))
    for arguments in ways_to_patch(bench):
        bench.run(*arguments, codes={INPUT, UNSAFE})


def test_a_call_behind_bytes_that_are_no_instruction_is_still_recorded(
    bench: Bench, objects: Mapping[str, bytes]
) -> None:
    """Also where its relocation is of the type that other instructions have too."""
    good = objects["two keys"]
    first = min(field_of(good, "relocations of code", "offset", n) for n in range(5))
    role = "relocations of code"
    (number,) = (n for n in range(5) if field_of(good, role, "offset", n) == first)
    bad = overwritten(edited(good, role, number, type=elf_object.R_X86_64_PC32), "code", b"\x0f\x04", first - 3)
    bench.put(good, bad)
    bench.run("annotate", bench.bad, "-o", bench.out, codes={0})
    assert len(elf_object.records(elf_object.read(bench.out))) == 5
    keeps_what_there_was(bench.bad, bench.out, annotated=True)


# ---- every field ----

# All values of all fields would take hours; a prime step takes other ones for every command.
STEPS: Final = {"annotate": 19, "report": 31, "patch": 41, "verify": 53}
_FIELDS = [
    *(("annotate", name) for name in ("calls", "groups", "numbers", "relative", "wide")),
    *(("report", name) for name in ("groups", "wide", "annotated")),
    ("patch", "two keys"),
    ("patch", "annotated"),
    *(("verify", name) for name in ("groups", "annotated")),
]


@pytest.mark.parametrize(("command", "name"), _FIELDS)
def test_an_object_with_any_field_set_to_anything_is_refused_or_done_right(
    command: str, name: str, bench: Bench, objects: Mapping[str, bytes]
) -> None:
    good = objects[name]
    for number, (_, bad) in enumerate(list(hostile(good))[:: STEPS[command]]):
        bench.put(good, bad)
        _try(bench, command, number)


@pytest.mark.parametrize("command", STEPS)
def test_an_object_that_is_cut_off_anywhere_is_refused(
    command: str, bench: Bench, objects: Mapping[str, bytes]
) -> None:
    for name in ("calls", "annotated"):
        for number, (_, bad) in enumerate(truncated(objects[name])):
            bench.put(objects[name], bad)
            codes = {INPUT, UNVERIFIED} if command == "verify" else {INPUT}
            bench.run(*_one_of(bench, command, number), codes=codes)


def _one_of(bench: Bench, command: str, number: int) -> Arguments:
    """One way of several to run a command, by its number."""
    choices: dict[str, list[Arguments]] = {
        "annotate": ways_to_annotate(bench),
        "report": ways_to_report(bench),
        "patch": ways_to_patch(bench),
        "verify": [("verify", bench.good, bench.bad), ("verify", bench.bad, bench.good)],
    }
    return choices[command][number % len(choices[command])]


def _try(bench: Bench, command: str, number: int) -> None:
    """See that a command ends well with the bad object, and that what it wrote is right."""
    arguments = _one_of(bench, command, number)
    # What a patch leads where is the planner's to see; where that was damaged too well, the proof sees it.
    codes = {"annotate": {0, INPUT}, "report": {0, 1, INPUT}, "patch": {0, INPUT, UNSAFE, UNVERIFIED}}
    written = bench.run(*arguments, codes=codes.get(command, {0, INPUT, UNVERIFIED}))
    if written.code == 0 and bench.out.exists() and bench.out.read_bytes() != bench.bad.read_bytes():
        bench.run("verify", bench.bad, bench.out, codes={0})
        keeps_what_there_was(bench.bad, bench.out, annotated=command == "annotate")
        if number % 40 == 0:
            no_more_warnings(bench.bad, bench.out)

"""Tables that lead nowhere, and files that are odd and perhaps good enough.

The headers are those of a sound file; what they lead to is not.
"""

from __future__ import annotations

import os
import struct
import tracemalloc

import pytest

from tests.support.elf_edit import (
    DT_RELA,
    DT_RELASZ,
    DT_RELR,
    DT_RELRSZ,
    PT_DYNAMIC,
    PT_LOAD,
    PT_NOTE,
    Edit,
    Elf,
    section,
    segment,
    tags,
    without_sections,
)
from tests.support.refusals import (
    COMMANDS,
    INPUT,
    READERS,
    UNSAFE,
    USAGE,
    Arguments,
    Room,
    at_most,
    contents,
    refusal,
    refused_by,
    survived,
)
from tests.support.tool import report, staticcall, staticcall_process

LAST = (1 << 64) - 1
TABLE = "static_call_sites"
HEADER_SIZE = 64


def _aim(elf: Elf, number: int, field: int, address: int) -> None:
    """Let a field of a record, 0 for the site and 4 for the key, lead to a linked address."""
    table = elf.section(TABLE)
    place = 8 * number + field
    struct.pack_into("<i", elf.data, table["offset"] + place, address - table["addr"] - place)


def _section_end(elf: Elf, name: str) -> int:
    return elf.section(name)["addr"] + elf.section(name)["size"]


LOST_RECORDS: dict[str, Edit] = {
    "site-far-behind": lambda elf: _aim(elf, 0, 0, elf.section(TABLE)["addr"] + (1 << 31) - 1),
    "site-far-before": lambda elf: _aim(elf, 3, 0, elf.section(TABLE)["addr"] - (1 << 31) + 64),
    "site-before-everything": lambda elf: _aim(elf, 1, 0, -1),
    "site-behind-what-is-loaded": lambda elf: _aim(elf, 1, 0, _section_end(elf, ".bss") + 4096),
    "site-in-memory-only": lambda elf: _aim(elf, 2, 0, elf.section(".bss")["addr"]),
    "key-far-behind": lambda elf: _aim(elf, 0, 4, elf.section(TABLE)["addr"] + (1 << 31) - 1),
    "key-before-everything": lambda elf: _aim(elf, 1, 4, -8),
    "key-behind-what-is-loaded": lambda elf: _aim(elf, 1, 4, _section_end(elf, ".bss") + 4096),
}


@pytest.mark.parametrize("case", LOST_RECORDS)
def test_a_record_that_leads_out_of_the_file_is_refused(case: str, room: Room) -> None:
    room.spoil(LOST_RECORDS[case])
    for command in COMMANDS:
        # For a verifier a lost record is one that nothing may have changed for.
        if command == "verify-itself":
            survived(command, room)
        else:
            refused_by(command, room)


def test_start_and_stop_symbols_that_contradict_each_other_are_refused(room: Room) -> None:
    def shift(delta: int) -> Edit:
        def edit(elf: Elf) -> None:
            stop = elf.symbol("__stop_static_call_sites")
            stop["value"] = elf.symbol("__start_static_call_sites")["value"] + delta
            # Without its section, the table is where the symbols say.
            elf.section(TABLE)["flags"] = 0

        return edit

    for delta in (-8, 4, 1 << 40, -(1 << 12)):
        room.spoil(shift(delta))
        for command in COMMANDS:
            refused_by(command, room)


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("", USAGE),
        (":", USAGE),
        ("4000", USAGE),
        ("4000:", USAGE),
        (":4000", USAGE),
        ("no_such_symbol:4000", USAGE),
        ("4000:0xzz", USAGE),
        ("4000:4008:4010", USAGE),
        ("0:ffffffffffffffff", INPUT),
        ("-8:0", USAGE),
        ("ffffffffffffffff:0", INPUT),
        ("fffffffffffffff8:10000000000000000", USAGE),
        ("1" * 5000 + ":" + "1" * 5000, USAGE),
        ("__start_static_call_sites:7fffffff", INPUT),
        ("__stop_static_call_sites:__start_static_call_sites", INPUT),
        ("main:__stop_static_call_sites", INPUT),
    ],
)
def test_a_table_that_is_none_is_refused(table: str, code: int, room: Room) -> None:
    room.bad.write_bytes(room.good.read_bytes())
    for command in ("report", "bind"):
        arguments = (*READERS[command](room), "--table", table)
        refusal(room.folder, arguments, {code}, room.bad)


# ---- odd, and perhaps good enough ----


def _each_segment(elf: Elf, **values: int) -> None:
    for one in elf.segments():
        one.update(values)


def _pile_up(elf: Elf) -> None:
    """Let several sections be code from the first byte to the last."""
    for one in list(elf.sections())[1:9]:
        one.update({"flags": 6, "addr": 0, "offset": 0, "size": len(elf.data)})


def _each_symbol(elf: Elf, **values: int) -> None:
    for symbol in elf.symbols():
        symbol.update(values)


def _fill(elf: Elf, name: str, byte: bytes) -> None:
    offset, size = elf.span(name)
    elf.data[offset : offset + size] = byte * size


def _end_of_code(elf: Elf) -> int:
    """The end of what the file has for the segment with the code."""
    code = next(s for s in elf.segments() if s["type"] == PT_LOAD and s["flags"] & 1)
    return code["vaddr"] + code["filesz"]


ODD: dict[str, Edit] = {
    "names-of-symbols-beyond": lambda elf: _each_symbol(elf, name=0xFFFFFFFF),
    "values-of-symbols-beyond": lambda elf: _each_symbol(elf, value=LAST),
    "sizes-of-symbols-huge": lambda elf: _each_symbol(elf, size=LAST),
    "strings-without-end": lambda elf: _fill(elf, ".strtab", b"A"),
    "strings-cut-in-a-name": lambda elf: elf.section(".strtab").update({"size": elf.symbol("main")["name"] + 2}),
    "strings-cut-at-the-end": lambda elf: elf.section(".strtab").update({"size": elf.span(".strtab").size - 1}),
    "strings-none": section(".strtab", size=0),
    "note-name-huge": lambda elf: elf.note(".note.gnu.build-id").update({"namesz": 0xFFFFFFFF}),
    "note-huge": lambda elf: elf.note(".note.gnu.build-id").update({"descsz": 0xFFFFFFFF}),
    "note-endless": lambda elf: elf.note(".note.gnu.build-id").update({"namesz": 0, "descsz": 0, "type": 0}),
    "relocations-over-themselves": lambda elf: elf.tag(DT_RELA).update({"value": elf.segment(PT_DYNAMIC)["vaddr"]}),
    "relocations-over-the-headers": tags({DT_RELA: HEADER_SIZE, DT_RELASZ: 24 * 10}),
    "relocations-over-the-code": lambda elf: elf.tag(DT_RELA).update({"value": elf.section(".text")["addr"]}),
    "relocations-of-everything": lambda elf: _fill(elf, ".rela.dyn", b"\xff"),
    "dynamic-without-end": lambda elf: _fill(elf, ".dynamic", b"\x07"),
    "dynamic-over-the-code": lambda elf: elf.segment(PT_DYNAMIC).update({"offset": elf.span(".text").offset}),
    "segments-one-over-the-other": lambda elf: _each_segment(elf, vaddr=0, offset=0),
    "memory-without-end": segment(PT_LOAD, memsz=1 << 62),
    "sections-one-over-the-other": _pile_up,
    "text-from-the-start": section(".text", offset=0, addr=0),
    "table-of-nothing": section(TABLE, size=0),
    "table-over-the-code": lambda elf: elf.section(TABLE).update({"addr": elf.section(".text")["addr"]}),
    "table-of-zeros": lambda elf: _fill(elf, TABLE, b"\0"),
    "table-of-ones": lambda elf: _fill(elf, TABLE, b"\xff"),
    "trampolines-of-nothing": lambda elf: _fill(elf, ".static_call.text", b"\0"),
    "site-in-data": lambda elf: _aim(elf, 0, 0, elf.section(".data")["addr"]),
    "site-at-the-end-of-a-segment": lambda elf: _aim(elf, 0, 0, _end_of_code(elf) - 1),
    "key-in-code": lambda elf: _aim(elf, 0, 4, elf.section(".text")["addr"]),
    "key-in-the-table": lambda elf: _aim(elf, 0, 4, elf.section(TABLE)["addr"]),
    "key-in-the-headers": lambda elf: _aim(elf, 0, 4, 0),
    "no-sections": without_sections,
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_ends_no_command_otherwise_than_it_may_end(case: str, room: Room) -> None:
    room.spoil(ODD[case])
    for command in COMMANDS:
        survived(command, room)


def test_an_absurd_note_is_no_build_id(room: Room) -> None:
    room.spoil(ODD["note-huge"])
    assert report(room.bad)["build_id"] is None


def test_names_out_of_a_file_give_no_orders_to_a_terminal(room: Room) -> None:
    room.bad.write_bytes(room.good.read_bytes().replace(b"__alpha\0", b"__\x1b[2\nJ\0"))
    for arguments in (("report", "-v", room.bad), ("patch", room.bad, "-v", "--bind", "--dry-run")):
        outcome = staticcall(*arguments)
        assert outcome.code == 0, outcome
        assert r"\x1b[2\nJ" in outcome.out
        assert all(line.isprintable() for line in outcome.out.split("\n"))
    line = refusal(room.folder, ("patch", room.bad, "--set", "\x1b[1m\n=NULL", "--dry-run"), {UNSAFE}, room.bad)
    assert line.rstrip("\n").isprintable()


def test_relocations_that_unpack_to_a_thousand_times_their_size_take_no_memory(room: Room) -> None:
    bitmaps = 1 << 20

    def bomb(elf: Elf) -> None:
        end = len(elf.data)
        elf.data += b"\xff" * bitmaps
        place = 1 << 32
        elf.segment(PT_NOTE).update(
            {"type": PT_LOAD, "offset": end, "vaddr": place, "filesz": bitmaps, "memsz": bitmaps}
        )
        tags({DT_RELR: place, DT_RELRSZ: bitmaps})(elf)

    room.spoil(bomb, relr=True)
    staticcall("report", room.good)  # whatever is imported has been
    tracemalloc.start()
    try:
        refused_by("report", room)
        assert tracemalloc.get_traced_memory()[1] < 64 * bitmaps
    finally:
        tracemalloc.stop()


HOLES: dict[str, Edit] = {
    "symbols": section(".symtab", size=24 << 30),
    "strings": section(".strtab", size=1 << 35),
    "names": section(".shstrtab", size=1 << 35),
    "dynamic": segment(PT_DYNAMIC, filesz=1 << 35, memsz=1 << 35),
    "code": section(".text", size=1 << 35),
    "segment": segment(PT_LOAD, filesz=1 << 35, memsz=1 << 35),
    "nothing": section(TABLE),
}


@pytest.mark.parametrize("case", HOLES)
def test_a_file_of_holes_takes_neither_time_nor_memory(case: str, room: Room) -> None:
    room.spoil(HOLES[case])
    os.truncate(room.bad, 1 << 36)
    for command in ("report", "report-json", "report-scan", "dry-run", "set-unknown"):
        staticcall(*_unfinished(command, room._replace(bad=room.good)))  # whatever is imported has been
        tracemalloc.start()
        try:
            with at_most(5):
                outcome = staticcall(*_unfinished(command, room))
            assert tracemalloc.get_traced_memory()[1] < 1 << 27
        finally:
            tracemalloc.stop()
        assert outcome.code in (0, 1, INPUT, UNSAFE), outcome
    assert contents(room.folder).keys() == {"good", "bad", "edits.json"}


def _unfinished(command: str, room: Room) -> Arguments:
    """What writes no copy, or begins one and thinks better of it."""
    if command == "set-unknown":
        return ("patch", room.bad, "--set", "no_such_key=NULL", "-o", room.out)
    return READERS[command](room)


def test_a_process_of_its_own_says_the_same(room: Room) -> None:
    room.bad.write_bytes(room.good.read_bytes()[:1000])
    for command in ("report", "bind-edits", "verify-patched", "revert"):
        arguments = COMMANDS[command](room)
        here, there = staticcall(*arguments), staticcall_process(*arguments)
        assert here == there
        refusal(room.folder, arguments, {here.code}, room.folder, staticcall_process)

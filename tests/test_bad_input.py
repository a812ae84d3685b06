"""Images that are none: cut off, or with headers that lie.

Whatever is asked of them, the answer is one clear line and the right exit code, and nothing has changed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterable

import pytest

from tests.support.elf_edit import (
    DT_RELA,
    DT_RELASZ,
    DT_RELR,
    DT_RELRSZ,
    DT_STRSZ,
    DT_STRTAB,
    DT_SYMTAB,
    ET_CORE,
    ET_REL,
    PT_DYNAMIC,
    PT_LOAD,
    PT_NOTE,
    SECTION_SIZE,
    SEGMENT_SIZE,
    SHT_SYMTAB,
    Edit,
    Elf,
    both,
    header,
    section,
    segment,
    tags,
    without_sections,
)
from tests.support.refusals import COMMANDS, INPUT, READERS, Room, one_line, refused_by, survived
from tests.support.tool import staticcall

LAST = (1 << 64) - 1
TABLE = "static_call_sites"
HEADER_SIZE = 64

every_command = pytest.mark.parametrize("command", COMMANDS)


# ---- cut off ----


def _cut(command: str, room: Room, sizes: Iterable[int]) -> None:
    """See that the good file is refused at every one of these sizes; cutting on costs less than writing anew."""
    room.bad.write_bytes(room.good.read_bytes())
    for size in sorted(sizes, reverse=True):
        os.truncate(room.bad, size)
        refused_by(command, room)


@every_command
def test_a_file_cut_off_anywhere_in_its_headers_is_refused(command: str, room: Room) -> None:
    whole = room.good.read_bytes()
    # All readers are alike in this; three stand for the others at most of the places.
    step = 1 if command in ("report", "bind", "verify-itself") else 11
    _cut(command, room, range(0, HEADER_SIZE + SEGMENT_SIZE * Elf(whole).header["phnum"] + 1, step))


@every_command
def test_a_file_cut_off_in_its_section_headers_is_refused(command: str, room: Room) -> None:
    whole = room.good.read_bytes()
    start = Elf(whole).header["shoff"]
    _cut(command, room, {start, start + 1, *range(start, len(whole), SECTION_SIZE // 2 + 1), len(whole) - 1})


def test_a_file_cut_off_anywhere_else_is_refused(room: Room) -> None:
    size = room.good.stat().st_size
    for command in ("report", "bind", "verify-itself"):
        _cut(command, room, range(HEADER_SIZE, size, size // 50))


def test_a_file_without_sections_is_refused_when_it_ends_in_a_segment(room: Room) -> None:
    elf = Elf(room.good.read_bytes())
    without_sections(elf)
    end = max(s["offset"] + s["filesz"] for s in elf.segments() if s["type"] == PT_LOAD)
    room.bad.write_bytes(elf.data[:end])
    assert survived("report", room).code == 0
    room.bad.write_bytes(elf.data[: end - 1])
    for command in READERS:
        refused_by(command, room)


# ---- headers that lie ----

REFUSED: dict[str, Edit] = {
    "class-32": header(ei_class=1),
    "class-none": header(ei_class=0),
    "big-endian": header(ei_data=2),
    "endianness-unknown": header(ei_data=3),
    "ident-version": header(ei_version=0),
    "version": header(version=2),
    "machine-i386": header(machine=3),
    "machine-arm64": header(machine=183),
    "object": header(type=ET_REL),
    "core-dump": header(type=ET_CORE),
    "no-type": header(type=0),
    "phoff-beyond": header(phoff=1 << 40),
    "phoff-last": header(phoff=LAST),
    "phoff-cut": lambda elf: elf.header.update({"phoff": len(elf.data) - SEGMENT_SIZE}),
    "phnum-none": header(phnum=0),
    "phnum-many": header(phnum=0xFFFE),
    "phnum-extended-none": header(phnum=0xFFFF),
    "phnum-extended-many": both(header(phnum=0xFFFF), section(0, info=0xFFFFFFFF)),
    "phnum-extended-without-sections": both(header(phnum=0xFFFF), without_sections),
    "phentsize-none": header(phentsize=0),
    "phentsize-odd": header(phentsize=SEGMENT_SIZE - 1),
    "phentsize-many": header(phentsize=0xFFFF),
    "shoff-beyond": header(shoff=1 << 40),
    "shoff-last": header(shoff=LAST),
    "shoff-cut": lambda elf: elf.header.update({"shoff": len(elf.data) - SECTION_SIZE}),
    "shnum-many": header(shnum=0xFEFF),
    "shnum-extended-many": both(section(0, size=1 << 32), header(shnum=0)),
    "shnum-extended-most": both(section(0, size=LAST), header(shnum=0)),
    "shnum-extended-overflowing": both(section(0, size=1 << 58), header(shnum=0)),
    "shentsize-none": header(shentsize=0),
    "shentsize-odd": header(shentsize=SECTION_SIZE + 1),
    "shstrndx-beyond": header(shstrndx=0xFEFF),
    "shstrndx-extended-beyond": both(header(shstrndx=0xFFFF), section(0, link=0xFFFFFFFF)),
    "shstrndx-no-strings": header(shstrndx=1),
    "section-name-beyond": section(".text", name=0xFFFFFFFF),
    "section-beyond": section(".text", offset=1 << 40),
    "section-huge": section(".text", size=1 << 63),
    "section-wrapping": section(".text", offset=LAST, size=2),
    "segment-beyond": segment(PT_LOAD, offset=1 << 40),
    "segment-huge": segment(PT_LOAD, filesz=1 << 63, memsz=1 << 63),
    "segment-wrapping": segment(PT_LOAD, offset=LAST, filesz=2),
    "segment-larger-than-memory": segment(PT_LOAD, memsz=0),
    "segment-past-the-last-address": segment(PT_LOAD, 1, vaddr=LAST - 8),
    "nothing-loaded": lambda elf: _each_segment(elf, type=PT_NOTE),
    "dynamic-beyond": segment(PT_DYNAMIC, offset=1 << 40),
    "dynamic-huge": segment(PT_DYNAMIC, filesz=1 << 62),
    "notes-huge": segment(PT_NOTE, filesz=LAST),
    "note-section-huge": section(".note.gnu.build-id", size=1 << 40),
    "symbols-without-size": section(".symtab", entsize=0),
    "symbols-of-odd-size": section(".symtab", entsize=23),
    "symbols-cut": lambda elf: elf.section(".symtab").update({"size": elf.span(".symtab").size - 1}),
    "symbols-linked-beyond": section(".symtab", link=0xFFFFFFFF),
    "symbols-linked-to-data": section(".symtab", link=1),
    "symbols-linked-to-themselves": lambda elf: _link_to_itself(elf, ".symtab"),
    "symbol-strings-beyond": section(".strtab", offset=1 << 40),
    "table-cut": section(TABLE, size=8 * 3 + 4),
    "table-odd": section(TABLE, size=7),
    "table-huge": section(TABLE, size=1 << 60),
    "table-elsewhere": section(TABLE, addr=1 << 40),
    "table-at-the-last-address": section(TABLE, addr=LAST - 7, size=8),
    "relocations-beyond": tags({DT_RELA: 1 << 40}),
    "relocations-last": tags({DT_RELA: LAST}),
    "relocations-huge": tags({DT_RELASZ: 24 << 56}),
    "relocations-cut": tags({DT_RELASZ: 23}),
    "dynamic-strings-beyond": tags({DT_STRTAB: 1 << 40}),
    "dynamic-strings-huge": tags({DT_STRSZ: LAST}),
    "dynamic-strings-none": tags({DT_STRSZ: 0}),
    "dynamic-symbols-beyond": tags({DT_SYMTAB: 1 << 40}),
}
# The verifier looks up no symbol of the dynamic linker's, and proves the rest all the same.
UNREAD_BY_VERIFY = ("dynamic-strings-beyond", "dynamic-strings-huge", "dynamic-strings-none", "dynamic-symbols-beyond")
REFUSED_RELR: dict[str, Edit] = {
    "packed-beyond": tags({DT_RELR: 1 << 40}),
    "packed-huge": tags({DT_RELRSZ: 1 << 60}),
    "packed-cut": tags({DT_RELRSZ: 9}),
}


def _each_segment(elf: Elf, **values: int) -> None:
    for one in elf.segments():
        one.update(values)


def _link_to_itself(elf: Elf, name: str) -> None:
    number = next(i for i, one in enumerate(elf.sections()) if one["type"] == SHT_SYMTAB)
    elf.section(name)["link"] = number


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_cannot_be_is_refused(case: str, room: Room) -> None:
    room.spoil(REFUSED[case])
    for command in COMMANDS:
        if command == "verify-itself" and case in UNREAD_BY_VERIFY:
            survived(command, room)
        else:
            refused_by(command, room)


@pytest.mark.parametrize("case", REFUSED_RELR)
def test_packed_relocations_that_cannot_be_are_refused(case: str, room: Room) -> None:
    room.spoil(REFUSED_RELR[case], relr=True)
    for command in COMMANDS:
        refused_by(command, room)


# ---- many files ----


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_bad_file_takes_no_good_one_along(jobs: str, room: Room) -> None:
    room.bad.write_bytes(b"\x7fELF")
    outcome = staticcall("report", "--format", "jsonl", "-j", jobs, room.good, room.bad, room.good)
    assert outcome.code == INPUT
    assert f"{room.bad}: " in one_line(outcome)
    assert [json.loads(line)["path"] for line in outcome.out.splitlines()] == [str(room.good)] * 2


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="only a fork knows of the change")
def test_a_helper_that_is_killed_is_told(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("staticcall.pipeline.batch.report_image", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    outcome = staticcall("report", "-j", "2", room.good, room.good)
    assert (outcome.code, outcome.out) == (INPUT, "")
    assert "-j" in one_line(outcome)

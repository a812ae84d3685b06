"""Where a sound file has what is worth damaging: headers, tables and code, entry by entry and field by field.

    regions_of(content)      an ELF file, an archive of some, or a text

Read without anything of the tool's own. A region stays what it is while a file is damaged more and more; whoever
uses it sees to the file's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from tests.support.elf_edit import ET_CORE, ET_REL, PT_LOAD, SECTION_SIZE, SEGMENT_SIZE, SYMBOL_SIZE, Elf, Fields

SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_DYNAMIC, SHT_NOTE, SHT_NOBITS, SHT_REL, SHT_DYNSYM = 2, 3, 4, 6, 7, 8, 9, 11
SHT_GROUP, SHT_SYMTAB_SHNDX, SHT_RELR = 17, 18, 19
SHF_EXECINSTR = 4
RECORDS: Final = ("static_call_sites", ".static_call_sites", ".static_call_tramp_key")
TRAMPOLINES = ".static_call.text"
ARCHIVE_MAGIC = b"!<arch>\n"
MEMBER_SIZE = 60
_MOST_CODE_PLACES = 400

# Offsets and sizes of the fields of one entry.
Layout = tuple[tuple[int, int], ...]


def _layout(*sizes: int) -> Layout:
    places, at = [], 0
    for size in sizes:
        places.append((at, size))
        at += size
    return tuple(places)


_HEADER = _layout(4, 1, 1, 1, 1, 8, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2)
_SEGMENT = _layout(4, 4, 8, 8, 8, 8, 8, 8)
_SECTION = _layout(4, 4, 8, 8, 8, 8, 4, 4, 8, 8)
_WORDS = _layout(4)
_BY_TYPE: Final[Mapping[int, Layout]] = MappingProxyType(
    {
        SHT_SYMTAB: _layout(4, 1, 1, 2, 8, 8),
        SHT_DYNSYM: _layout(4, 1, 1, 2, 8, 8),
        SHT_RELA: _layout(8, 4, 4, 8),
        SHT_REL: _layout(8, 4, 4),
        SHT_DYNAMIC: _layout(8, 8),
        SHT_RELR: _layout(8),
        SHT_NOTE: _WORDS,
        SHT_GROUP: _WORDS,
        SHT_SYMTAB_SHNDX: _WORDS,
    }
)
# As arch/x86/include/asm/{alternative,extable}.h and include/linux/{jump_label,static_call_types}.h of Linux have them.
_BY_NAME: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        **dict.fromkeys(RECORDS, _layout(4, 4)),
        TRAMPOLINES: _layout(1, 4, 3),
        ".altinstructions": _layout(4, 4, 4, 1, 1),
        ".parainstructions": _layout(8, 1, 1, 2, 4),
        "__jump_table": _layout(4, 4, 8),
        "__ex_table": _layout(4, 4, 4),
        "_kprobe_blacklist": _layout(8),
        ".data": _layout(8),
        ".data.rel.ro": _layout(8),
        **dict.fromkeys((".retpoline_sites", ".return_sites", ".call_sites", ".smp_locks", ".kcfi_traps"), _WORDS),
        **dict.fromkeys(
            (".BTF", ".debug_abbrev", ".debug_info", ".debug_line", ".debug_str_offsets"), _layout(1, 1, 2, 4)
        ),
    }
)
_BYTES = _layout(1)


class Region(NamedTuple):
    """A part of a file: a table of entries of `step` bytes, with these fields in each."""

    name: str
    offset: int
    size: int
    fields: Layout = _BYTES

    @property
    def step(self) -> int:
        """Bytes from one entry to the next."""
        at, size = self.fields[-1]
        return at + size


class Map(NamedTuple):
    """What is known of a sound file."""

    regions: tuple[Region, ...]
    numbers: tuple[int, ...]
    """Addresses, offsets and sizes that mean something in this file."""
    code: tuple[int, ...]
    """Offsets where instructions are that mean something: sites, trampolines, starts of functions."""
    records: tuple[tuple[int, int], ...]
    """Offset and linked address of every word that is relative to itself."""
    header: int = 0
    """Offset of the section headers, of the first ELF file in it."""

    def moved(self, by: int) -> Map:
        """The same for a file that begins `by` bytes further on."""
        return Map(
            tuple(region._replace(offset=region.offset + by) for region in self.regions),
            self.numbers,
            tuple(place + by for place in self.code),
            tuple((place + by, address) for place, address in self.records),
            self.header + by,
        )


def regions_of(content: bytes) -> Map:
    """The map of a sound file."""
    if content.startswith(ARCHIVE_MAGIC):
        return _archive(content)
    if content.startswith(b"\x7fELF"):
        return _elf(content)
    return Map((Region("text", 0, len(content)),), (len(content),), (), ())


def _archive(content: bytes) -> Map:
    parts = [Map((Region("magic", 0, 8),), (len(content),), (), ())]
    at = len(ARCHIVE_MAGIC)
    while at + MEMBER_SIZE <= len(content):
        size = int(content[at + 48 : at + 58])
        start = at + MEMBER_SIZE
        header = Region("member's header", at, MEMBER_SIZE, _layout(16, 12, 6, 6, 8, 10, 2))
        parts.append(Map((header,), (at, start, size), (), ()))
        member = content[start : start + size]
        if member.startswith(b"\x7fELF"):
            parts.append(_elf(member).moved(start))
        else:
            parts.append(Map((Region("member", start, size, _WORDS),), (), (), ()))
        at = start + size + size % 2
    return Map(
        tuple(region for part in parts for region in part.regions if region.size),
        tuple(sorted({number for part in parts for number in part.numbers})),
        tuple(place for part in parts for place in part.code),
        tuple(record for part in parts for record in part.records),
    )


def _elf(content: bytes) -> Map:
    elf = Elf(content)
    header = elf.header
    regions = [Region("header", 0, 64, _HEADER)]
    if header["type"] == ET_CORE:
        regions += _memory(elf)
    if header["phnum"]:
        regions.append(Region("program headers", header["phoff"], header["phnum"] * SEGMENT_SIZE, _SEGMENT))
    regions.append(Region("section headers", header["shoff"], header["shnum"] * SECTION_SIZE, _SECTION))
    numbers = {len(content), header["entry"], header["shoff"], header["shnum"], header["shstrndx"]}
    records: list[tuple[int, int]] = []
    code: set[int] = set()
    for section in elf.sections():
        offset, size, address = section["offset"], section["size"], section["addr"]
        numbers |= {offset, size, offset + size, address, address + size}
        if section["type"] in (0, SHT_NOBITS) or not size:
            continue
        region = Region(_name(elf, section), offset, size)
        region = region._replace(fields=_fields(region.name, section["type"], section["flags"]))
        regions.append(region)
        if region.name in RECORDS:
            records += [(offset + at, address + at) for at in range(0, size, 4)]
        code |= {offset + at for at in range(0, size, 8) if region.name == TRAMPOLINES}
    if not records:
        records = list(_between_symbols(elf))
    for one in elf.segments():
        numbers |= {one["vaddr"], one["vaddr"] + one["memsz"], one["offset"], one["filesz"]}
    code |= set(_meant(elf, records))
    numbers |= _symbols(elf)
    return Map(
        tuple(region for region in regions if region.size),
        tuple(sorted(numbers)),
        tuple(sorted(code)[:_MOST_CODE_PLACES]),
        tuple(records),
        header["shoff"],
    )


def _name(elf: Elf, section: Fields) -> str:
    names = elf.section(elf.header["shstrndx"])["offset"]
    start = names + section["name"]
    return elf.data[start : elf.data.index(0, start)].decode("utf-8", "replace")


def _fields(name: str, kind: int, flags: int) -> Layout:
    if name in _BY_NAME:
        return _BY_NAME[name]
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    return _BYTES if flags & SHF_EXECINSTR or kind == SHT_STRTAB else _layout(1, 1, 2, 4)


def _meant(elf: Elf, records: list[tuple[int, int]]) -> Iterator[int]:
    """Where in the file the sites of a linked file's records are, and the branches of an object's code."""
    for place, address in records[::2]:
        word = int.from_bytes(elf.data[place : place + 4], "little", signed=True)
        try:
            yield elf.offset_of((address + word) & ((1 << 64) - 1))
        except KeyError:
            break  # an object: its relocations say where
    sections = list(elf.sections())
    for section in sections:
        if section["type"] == SHT_RELA and section["info"] < len(sections):
            target = sections[section["info"]]
            if elf.header["type"] == ET_REL and target["flags"] & SHF_EXECINSTR:
                for at in range(section["offset"], section["offset"] + section["size"], 24):
                    place = int.from_bytes(elf.data[at : at + 8], "little")
                    if 0 < place < target["size"]:
                        yield target["offset"] + place - 1


def _memory(elf: Elf) -> Iterator[Region]:
    """What a core holds, which has no sections."""
    for segment in elf.segments():
        name, fields = ("memory", _BYTES) if segment["type"] == PT_LOAD else ("notes", _WORDS)
        yield Region(name, segment["offset"], segment["filesz"], fields)


def _between_symbols(elf: Elf) -> Iterator[tuple[int, int]]:
    """The words of a table that only symbols name, as in a vmlinux."""
    if not elf.header["shnum"]:
        return
    try:
        start, stop = (elf.symbol(f"__{end}_static_call_sites")["value"] for end in ("start", "stop"))
        yield from ((elf.offset_of(address), address) for address in range(start, stop, 4))
    except KeyError:
        return


def _symbols(elf: Elf) -> set[int]:
    """Values and sizes of what is named as keys and trampolines are, and of functions."""
    if not elf.header["shnum"] or not elf.has_section(".symtab"):
        return set()
    wanted = re.compile(rb"__SC[TK]__|__static_call|__start|__stop|__x86|linux_banner")
    strings = elf.section(".strtab")["offset"]
    found = set()
    for symbol in elf.symbols():
        if symbol["info"] & 15 == 2 or wanted.match(elf.data, strings + symbol["name"]):
            found |= {symbol["value"], symbol["size"], symbol["value"] + symbol["size"]}
    count = elf.span(".symtab").size // SYMBOL_SIZE
    return found | {count, count - 1}

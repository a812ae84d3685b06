"""Reads relocatable objects by hand, for tests that must not trust the tool's own reader.

    elf = read(path)
    elf.symbols[elf.relocations(".rela.text")[0].symbol].name
    records(elf)

Little enough to check by eye, and held against readelf in the tests of this reader.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_GROUP, SHT_SYMTAB_SHNDX = 2, 3, 4, 8, 17, 18
SHT_LLVM_ADDRSIG = 0x6FFF4C03
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK, SHF_GROUP = 0x1, 0x2, 0x4, 0x40, 0x200
STT_FUNC, STT_SECTION = 2, 3
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
R_X86_64_PC32 = 2
_SHN_LORESERVE, _SHN_XINDEX = 0xFF00, 0xFFFF

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")
_RECORD_SIZE = 8


class BrokenTableError(Exception):
    """A table of static-call sites is not what it should be; the message says where."""


class Section(NamedTuple):
    """A section header with its name and its bytes."""

    number: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int
    content: bytes


class Symbol(NamedTuple):
    """A symbol; `section` is the number of its section even where that does not fit 16 bits."""

    name: str
    type: int
    binding: int
    other: int
    section: int
    value: int
    size: int


class Relocation(NamedTuple):
    """One entry; `symbol` is a number."""

    offset: int
    type: int
    symbol: int
    addend: int


class Object(NamedTuple):
    """A whole object; sections and symbols stand at their own numbers."""

    sections: list[Section]
    symbols: list[Symbol]
    symtab: int
    names: int
    """The section of the sections' names."""

    def named(self, name: str) -> list[Section]:
        """Every section of this name."""
        return [section for section in self.sections if section.name == name]

    def relocations(self, section: Section) -> list[Relocation]:
        """The entries of a section of type SHT_RELA, in the file's order."""
        return [
            Relocation(offset, kind, symbol, addend)
            for offset, kind, symbol, addend in _RELA.iter_unpack(section.content)
        ]

    def relocations_of(self, section: Section) -> list[Relocation]:
        """The entries of all sections that relocate this one."""
        return [
            entry
            for table in self.sections
            if table.type == SHT_RELA and table.info == section.number
            for entry in self.relocations(table)
        ]


class Record(NamedTuple):
    """One record: the place of the instruction, the key's (or trampoline's) symbol, and the flags, its addend."""

    section: str
    section_number: int
    offset: int
    key: str
    flags: int


class Table(NamedTuple):
    """A table of records and the section that it is."""

    section: Section
    relocations: Section
    records: list[Record]


def read(path: Path) -> Object:
    """Read an object; raises `struct.error`, `IndexError` or `ValueError` where it is none."""
    data = path.read_bytes()
    header = _HEADER.unpack_from(data)
    start, count, names = header[6], header[12], header[13]
    first = _SECTION.unpack_from(data, start)
    count, names = count or first[5], first[6] if names == _SHN_XINDEX else names
    raw = [_SECTION.unpack_from(data, start + _SECTION.size * number) for number in range(count)]
    contents = [
        b"" if fields[1] == SHT_NOBITS or not number else data[fields[4] : fields[4] + fields[5]]
        for number, fields in enumerate(raw)
    ]
    sections = [
        Section._make((number, _string(contents[names], fields[0]), *fields[1:], content))
        for number, (fields, content) in enumerate(zip(raw, contents, strict=True))
    ]
    (symtab,) = (section for section in sections if section.type == SHT_SYMTAB)
    return Object(sections, _symbols(sections, symtab), symtab.number, names)


def tables(elf: Object, name: str = ".static_call_sites") -> list[Table]:
    """The tables of records in the order of their sections; raises `BrokenTableError` unless all is as it should be."""
    found = []
    for section in elf.named(name):
        relocated = [other for other in elf.sections if other.type == SHT_RELA and other.info == section.number]
        if len(relocated) != 1 or any(section.content) or section.size % _RECORD_SIZE or not section.size:
            raise BrokenTableError(f"section {section.number} of {section.size} bytes, {len(relocated)} of relocations")
        found.append(Table(section, relocated[0], list(_records(elf, section, elf.relocations(relocated[0])))))
    return found


def records(elf: Object, name: str = ".static_call_sites") -> list[Record]:
    """The records of all tables, one after the other."""
    return [record for table in tables(elf, name) for record in table.records]


def _records(elf: Object, section: Section, entries: list[Relocation]) -> Iterator[Record]:
    for number, (site, key) in enumerate(zip(entries[::2], entries[1::2], strict=True)):
        place, name = elf.symbols[site.symbol], elf.symbols[key.symbol].name
        expected = [(at, R_X86_64_PC32) for at in (_RECORD_SIZE * number, _RECORD_SIZE * number + 4)]
        if [entry[:2] for entry in (site, key)] != expected or place.type != STT_SECTION:
            raise BrokenTableError(f"record {number} of section {section.number}: {site}, {key}, {place}")
        yield Record(elf.sections[place.section].name, place.section, place.value + site.addend, name, key.addend)
    if _RECORD_SIZE * len(entries) != 2 * section.size:
        raise BrokenTableError(f"section {section.number} has {section.size} bytes and {len(entries)} relocations")


def _symbols(sections: list[Section], symtab: Section) -> list[Symbol]:
    strings = sections[symtab.link].content
    wide = [section for section in sections if section.type == SHT_SYMTAB_SHNDX and section.link == symtab.number]
    numbers = [number for (number,) in struct.iter_unpack("<I", wide[0].content)] if wide else []
    found = []
    for at, (name, info, other, section, value, size) in enumerate(_SYMBOL.iter_unpack(symtab.content)):
        where = numbers[at] if section == _SHN_XINDEX else section
        found.append(Symbol(_string(strings, name), info & 15, info >> 4, other, where, value, size))
    return found


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()

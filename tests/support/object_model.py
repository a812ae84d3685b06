"""Relocatable objects taken apart and put together again, for tests that make right and wrong ones by hand.

    model = Model(path.read_bytes())
    annotate(model, [Site(".text", 0x33, "__SCK__one", tail=True), ...])
    model.dump()

What is put together has the same sections, one behind the other. Nothing of the tool's own reader or writer is in
here, and nothing is checked: a test may well want an object that makes no sense.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_GROUP = 1, 2, 3, 4, 8, 17
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK, SHF_GROUP = 0x1, 0x2, 0x4, 0x40, 0x200
STT_SECTION = 3
R_X86_64_NONE, R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32 = 0, 1, 2, 4
TABLE = ".static_call_sites"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")


@dataclass
class Section:
    """A section header and its content; `size` counts only where there is no content in the file."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int
    content: bytearray = field(default_factory=bytearray)


@dataclass
class Symbol:
    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


@dataclass
class Entry:
    """A relocation."""

    offset: int
    type: int
    symbol: int
    addend: int


class Site(NamedTuple):
    """A record to be made: the place, the symbol of its key, and whether it is a tail."""

    section: str
    offset: int
    key: str
    tail: bool


class Model:
    """An object with fewer than 0xff00 sections; everything in it may be changed."""

    def __init__(self, data: bytes) -> None:
        self.header = list(_HEADER.unpack_from(data))
        start, count = self.header[6], self.header[12]
        self.sections = [Section(*_SECTION.unpack_from(data, start + _SECTION.size * i)) for i in range(count)]
        for section in self.sections[1:]:
            if section.type != SHT_NOBITS:
                section.content = bytearray(data[section.offset : section.offset + section.size])
        self.names = self.sections[self.header[13]]
        (self.symtab,) = (section for section in self.sections if section.type == SHT_SYMTAB)
        self.strings = self.sections[self.symtab.link]
        self.symbols = [Symbol(*fields) for fields in _SYMBOL.iter_unpack(self.symtab.content)]
        self.tables = {
            number: [Entry(*fields) for fields in _RELA.iter_unpack(section.content)]
            for number, section in enumerate(self.sections)
            if section.type == SHT_RELA
        }

    def number(self, name: str) -> int:
        """The number of the last section of a name."""
        return max(i for i, section in enumerate(self.sections) if text(self.names, section.name) == name)

    def section(self, name: str) -> Section:
        return self.sections[self.number(name)]

    def entries(self, name: str) -> list[Entry]:
        """The relocations of a section, by the name of their own."""
        return self.tables[self.number(name)]

    def symbol(self, name: str) -> int:
        """The number of the symbol of a name."""
        (number,) = (i for i, symbol in enumerate(self.symbols) if text(self.strings, symbol.name) == name)
        return number

    def entry(self, table: str, offset: int) -> Entry:
        """The relocation at an offset."""
        (found,) = (entry for entry in self.entries(table) if entry.offset == offset)
        return found

    def add_string(self, strings: Section, string: str) -> int:
        strings.content += string.encode() + b"\0"
        return len(strings.content) - len(string) - 1

    def add_section(self, name: str, **fields: int) -> int:
        values = {"address": 0, "offset": 0, "size": 0, "link": 0, "info": 0, **fields}
        self.sections.append(Section(self.add_string(self.names, name), **values))  # type: ignore[arg-type]
        return len(self.sections) - 1

    def add_undefined(self, name: str) -> int:
        """The number of a new undefined global symbol at the end."""
        self.symbols.append(Symbol(self.add_string(self.strings, name), 0x10, 0, 0, 0, 0))
        return len(self.symbols) - 1

    def add_section_symbol(self, section: int) -> int:
        """The number of a new section symbol behind the other local ones; the first global goes to the end."""
        number = self.symtab.info
        self.symtab.info += 1
        displaced = len(self.symbols)
        self.symbols.append(self.symbols[number])
        self.symbols[number] = Symbol(0, STT_SECTION, 0, section, 0, 0)
        for entries in self.tables.values():
            for entry in entries:
                entry.symbol = displaced if entry.symbol == number else entry.symbol
        for group in self.sections:
            if group.type == SHT_GROUP and group.info == number:
                group.info = displaced
        return number

    def section_symbol(self, section: int) -> int:
        """The number of a section's symbol, which is made where there is none."""
        for number, symbol in enumerate(self.symbols):
            if symbol.info & 15 == STT_SECTION and symbol.section == section:
                return number
        return self.add_section_symbol(section)

    def dump(self, tail: bytes = b"") -> bytes:
        """The file, with `tail` behind it."""
        self.symtab.content = bytearray(b"".join(_SYMBOL.pack(*vars(symbol).values()) for symbol in self.symbols))
        for number, entries in self.tables.items():
            self.sections[number].content = bytearray(b"".join(_RELA.pack(*vars(entry).values()) for entry in entries))
        out = bytearray(_HEADER.size)
        for section in self.sections[1:]:
            out += bytes(-len(out) % max(section.alignment, 1))
            section.offset = len(out)
            if section.type != SHT_NOBITS:
                section.size = len(section.content)
                out += section.content
        out += bytes(-len(out) % 8)
        self.header[6], self.header[12] = len(out), len(self.sections)
        out[: _HEADER.size] = _HEADER.pack(*self.header)
        for section in self.sections:
            out += _SECTION.pack(*(value for name, value in vars(section).items() if name != "content"))
        return bytes(out) + tail


def text(strings: Section, start: int) -> str:
    """The string at a place of a string table."""
    return strings.content[start : strings.content.index(0, start)].decode()


def annotate(model: Model, sites: Iterable[Site], name: str = TABLE) -> None:
    """Add a table with these records, in this order."""
    sites = list(sites)
    for site in sites:
        model.section_symbol(model.number(site.section))
    flags, size = SHF_WRITE | SHF_ALLOC, 8 * len(sites)
    table = model.add_section(name, type=SHT_PROGBITS, flags=flags, alignment=1, entry_size=8)
    model.sections[table].content = bytearray(size)
    symtab = model.sections.index(model.symtab)
    own = model.add_section(
        f".rela{name}", type=SHT_RELA, flags=SHF_INFO_LINK, link=symtab, info=table, alignment=8, entry_size=24
    )
    entries = model.tables[own] = []
    for number, site in enumerate(sites):
        base = model.section_symbol(model.number(site.section))
        entries.append(Entry(8 * number, R_X86_64_PC32, base, site.offset))
        entries.append(Entry(8 * number + 4, R_X86_64_PC32, model.symbol(site.key), int(site.tail)))

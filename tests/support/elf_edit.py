"""Edits single fields of ELF64 files, with nothing of the tool's own reader.

    elf = Elf(path.read_bytes())
    elf.header["shoff"] = 1 << 60
    elf.section(".symtab")["link"] = 99
    elf.segment(PT_LOAD)["filesz"] += 1
    elf.tag(DT_RELASZ)["value"] = 1 << 62
    path.write_bytes(elf.data)

Fields have the names of the System V gABI without their prefixes, but for those in `e_ident`. A field is
found anew in the bytes at every access, so an edit may well make the next one impossible: do the outermost
last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 2, 3, 7, 8
DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ, DT_RELRSZ, DT_RELR = 5, 6, 7, 8, 10, 35, 36
ET_REL, ET_CORE = 1, 4

Layout = Mapping[str, tuple[int, str]]


def _layout(first: int, fields: str) -> Layout:
    """Offsets and struct codes of fields that follow each other without gaps, written `name:code`."""
    found: dict[str, tuple[int, str]] = {}
    at = first
    for field in fields.split():
        name, code = field.split(":")
        found[name] = (at, f"<{code}")
        at += struct.calcsize(f"<{code}")
    return MappingProxyType(found)


_HEADER: Final = _layout(
    4,
    "ei_class:B ei_data:B ei_version:B osabi:B padding:Q type:H machine:H version:I entry:Q phoff:Q shoff:Q flags:I"
    " ehsize:H phentsize:H phnum:H shentsize:H shnum:H shstrndx:H",
)
_SECTION: Final = _layout(0, "name:I type:I flags:Q addr:Q offset:Q size:Q link:I info:I addralign:Q entsize:Q")
_SEGMENT: Final = _layout(0, "type:I flags:I offset:Q vaddr:Q paddr:Q filesz:Q memsz:Q align:Q")
_SYMBOL: Final = _layout(0, "name:I info:B other:B shndx:H value:Q size:Q")
_TAG: Final = _layout(0, "tag:q value:Q")
_NOTE: Final = _layout(0, "namesz:I descsz:I type:I")
SECTION_SIZE, SEGMENT_SIZE, SYMBOL_SIZE, TAG_SIZE = 64, 56, 24, 16


class Span(NamedTuple):
    """`size` bytes of the file from `offset` on."""

    offset: int
    size: int


class Fields:
    """The fields of one structure, by name; assigning changes the file's bytes."""

    def __init__(self, data: bytearray, at: int, layout: Layout) -> None:
        self.at = at
        self._data = data
        self._layout = layout

    def __getitem__(self, name: str) -> int:
        offset, code = self._layout[name]
        return int(struct.unpack_from(code, self._data, self.at + offset)[0])

    def __setitem__(self, name: str, value: int) -> None:
        offset, code = self._layout[name]
        struct.pack_into(code, self._data, self.at + offset, value)

    def update(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            self[name] = value


Edit = Callable[["Elf"], None]


def header(**values: int) -> Edit:
    """An edit of fields of the ELF header; this and the next three are for tables of edits."""
    return lambda elf: elf.header.update(values)


def section(wanted: str | int, **values: int) -> Edit:
    """An edit of fields of a section header."""
    return lambda elf: elf.section(wanted).update(values)


def segment(kind: int, number: int = 0, **values: int) -> Edit:
    """An edit of fields of a program header."""
    return lambda elf: elf.segment(kind, number).update(values)


def tags(values: Mapping[int, int]) -> Edit:
    """An edit of the values of dynamic entries."""

    def edit(elf: Elf) -> None:
        for wanted, value in values.items():
            elf.tag(wanted)["value"] = value

    return edit


def without_sections(elf: Elf) -> None:
    """An edit that leaves no section headers, as some packers do."""
    elf.header.update({"shoff": 0, "shnum": 0, "shstrndx": 0})


def both(*edits: Edit) -> Edit:
    """Several edits, one after the other."""

    def edit(elf: Elf) -> None:
        for one in edits:
            one(elf)

    return edit


class Elf:
    """One file in memory. Raises `KeyError` for what the file does not have."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)

    @property
    def header(self) -> Fields:
        return Fields(self.data, 0, _HEADER)

    def sections(self) -> Iterator[Fields]:
        table, count = self.header["shoff"], self.header["shnum"]
        return (Fields(self.data, table + i * SECTION_SIZE, _SECTION) for i in range(count))

    def section(self, wanted: str | int) -> Fields:
        """The section with a name or a number."""
        headers = list(self.sections())
        if isinstance(wanted, int):
            return headers[wanted]
        names = headers[self.header["shstrndx"]]["offset"]
        for section in headers:
            start = names + section["name"]
            if self.data[start : self.data.index(0, start)] == wanted.encode():
                return section
        raise KeyError(wanted)

    def has_section(self, name: str) -> bool:
        try:
            self.section(name)
        except KeyError:
            return False
        return True

    def segments(self) -> Iterator[Fields]:
        table, count = self.header["phoff"], self.header["phnum"]
        return (Fields(self.data, table + i * SEGMENT_SIZE, _SEGMENT) for i in range(count))

    def segment(self, kind: int, number: int = 0) -> Fields:
        """The segment of a type, the first one unless told otherwise."""
        found = [segment for segment in self.segments() if segment["type"] == kind]
        if number >= len(found):
            raise KeyError(kind)
        return found[number]

    def tag(self, wanted: int) -> Fields:
        """The dynamic entry with a tag."""
        segment = self.segment(PT_DYNAMIC)
        for at in range(segment["offset"], segment["offset"] + segment["filesz"], TAG_SIZE):
            entry = Fields(self.data, at, _TAG)
            if entry["tag"] == wanted:
                return entry
        raise KeyError(wanted)

    def symbols(self) -> Iterator[Fields]:
        """The entries of `.symtab`."""
        offset, size = self.span(".symtab")
        return (Fields(self.data, at, _SYMBOL) for at in range(offset, offset + size, SYMBOL_SIZE))

    def symbol(self, name: str) -> Fields:
        """The entry of `.symtab` with a name."""
        strings = self.section(".strtab")["offset"]
        for entry in self.symbols():
            start = strings + entry["name"]
            if self.data[start : self.data.index(0, start)] == name.encode():
                return entry
        raise KeyError(name)

    def note(self, section: str) -> Fields:
        """The first note of a section."""
        return Fields(self.data, self.section(section)["offset"], _NOTE)

    def span(self, section: str) -> Span:
        """Where a section's content is."""
        header = self.section(section)
        return Span(header["offset"], header["size"])

    def offset_of(self, address: int) -> int:
        """Where a linked address is in the file."""
        for segment in self.segments():
            start = segment["vaddr"]
            if segment["type"] == PT_LOAD and start <= address < start + segment["filesz"]:
                return segment["offset"] + address - start
        raise KeyError(f"{address:#x}")

"""Relocatable objects by columns: headers, symbols and relocations, a whole table at a time.

A reader of the verifier's own. A build proves thousands of objects, so nothing here runs once per symbol or
relocation: tables are split by `struct.iter_unpack` and strided `array` slices, and contents stay where they
are in the file.

Sources: System V gABI, chapters 4 and 5 (extended numbering: e_shnum, e_shstrndx, SHT_SYMTAB_SHNDX); AMD64
psABI, chapter 4; LLVM, "Extensions" (SHT_LLVM_ADDRSIG, SHT_LLVM_CALL_GRAPH_PROFILE).
"""

import struct
import sys
from array import array
from collections.abc import Collection
from itertools import compress
from operator import gt
from struct import Struct
from typing import NamedTuple, TypeAlias

from staticcall.errors import MalformedError, UnsupportedError

# e_ident, type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize, shnum, shstrndx
HEADER = Struct("<16sHHIQQQIHHHHHH")
# name, type, flags, addr, offset, size, link, info, addralign, entsize
SECTION = Struct("<IIQQQQIIQQ")
# name, info, other, shndx, value, size
SYMBOL = Struct("<IBBHQQ")
INFO_FIELD = 4
# offset, type, symbol, addend
RELA = Struct("<QIIq")
REL = Struct("<QII")
SYMBOL_FIELD = 12  # in both
WORD = Struct("<I")

_IDENT = b"\x7fELF\2\1\1"
_ET_REL, _EM_X86_64, _EV_CURRENT = 1, 62, 1
SHOFF, SHNUM, SHSTRNDX = 6, 12, 13  # in a HEADER tuple: what a file with more sections may have otherwise
_SHENTSIZE = 11

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 0, 1, 2, 3, 4, 8, 9
SHT_GROUP, SHT_SYMTAB_SHNDX = 17, 18
SHT_LLVM_ADDRSIG, SHT_LLVM_CALL_GRAPH_PROFILE = 0x6FFF4C03, 0x6FFF4C09
# Types whose header or content names symbols by number.
WITH_SYMBOL_NUMBERS = frozenset({SHT_RELA, SHT_REL, SHT_GROUP, SHT_LLVM_ADDRSIG, SHT_LLVM_CALL_GRAPH_PROFILE})
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK, SHF_GROUP = 0x1, 0x2, 0x4, 0x40, 0x200
SHF_GNU_RETAIN = 0x200000

SHN_UNDEF, SHN_LORESERVE, SHN_XINDEX = 0, 0xFF00, 0xFFFF
STB_LOCAL, STB_GLOBAL = 0, 1
STT_NOTYPE, STT_FUNC, STT_SECTION, STT_GNU_IFUNC = 0, 2, 3, 10
R_X86_64_NONE, R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_PC8 = 0, 1, 2, 4, 15
R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX = 9, 41, 42


Column: TypeAlias = "array[int]"
# Where each field of a SECTION starts, in units of its size, and whether that is four bytes or eight.
_SECTION_FIELDS = (
    (0, True),
    (1, True),
    (1, False),
    (2, False),
    (3, False),
    (4, False),
    (10, True),
    (11, True),
    (6, False),
    (7, False),
)


class Symbols(NamedTuple):
    """A symbol table: `total` entries from file offset `start`, the first `locals_` of them local.

    `strings` and `strings_end` are file offsets. `extended` is the file offset of the SHT_SYMTAB_SHNDX table,
    0 where there is none, `extended_section` its section.
    """

    section: int
    start: int
    total: int
    locals_: int
    strings: int
    strings_end: int
    extended: int
    extended_section: int

    @property
    def room(self) -> int:
        """More bytes than names have that are kept at once, though some share their ends."""
        return 4 * (self.strings_end - self.strings) + (1 << 20)

    @property
    def end(self) -> int:
        """The file offset behind the table."""
        return self.start + self.total * SYMBOL.size


class Symbol(NamedTuple):
    """One symbol; `section` is its section's index with the extended ones resolved, 0xff00 and more reserved."""

    name: bytes
    info: int
    other: int
    section: int
    value: int
    size: int

    @property
    def binding(self) -> int:
        """STB_..."""
        return self.info >> 4

    @property
    def type(self) -> int:
        """STT_..."""
        return self.info & 15


class Elf(NamedTuple):
    """One object. Each column has one value per section, section 0 included.

    `header` is the unpacked ELF header, `names_index` the section with the section names, `symbols` None where
    there is no symbol table. `spans` are (offset, end) of everything that the headers claim, sorted, disjoint.
    """

    data: bytes | bytearray
    view: memoryview
    header: tuple[int, ...]
    names_index: int
    names: Column
    types: Column
    flags: Column
    addresses: Column
    offsets: Column
    sizes: Column
    links: Column
    infos: Column
    alignments: Column
    entry_sizes: Column
    symbols: Symbols | None
    spans: list[tuple[int, int]]

    @property
    def section_count(self) -> int:
        """The number of sections."""
        return len(self.types)

    @property
    def symbol_count(self) -> int:
        """The number of symbols, 0 where there is no table."""
        return self.symbols.total if self.symbols else 0

    def name(self, section: int) -> bytes:
        """A section's name."""
        return self._string(self.names[section], self.offsets[self.names_index], self.sizes[self.names_index])

    def symbol(self, number: int) -> Symbol:
        """A symbol by its number; raises `MalformedError` where the table has none."""
        table = self.symbols
        if table is None or number >= table.total:
            raise MalformedError(f"symbol {number} is not in the symbol table")
        name, info, other, section, value, size = SYMBOL.unpack_from(self.data, table.start + number * SYMBOL.size)
        if section == SHN_XINDEX and table.extended:
            (section,) = WORD.unpack_from(self.data, table.extended + number * WORD.size)
        text = self._string(name, table.strings, table.strings_end - table.strings)
        return Symbol(text, info, other, section, value, size)

    def extended(self, number: int) -> int:
        """What SHT_SYMTAB_SHNDX has for a symbol, 0 where there is no such table."""
        table = self.symbols
        if table is None or not table.extended:
            return 0
        return int(WORD.unpack_from(self.data, table.extended + number * WORD.size)[0])

    def symbol_name(self, number: int) -> bytes:
        """A symbol's name by the symbol's number; raises `MalformedError` where there is none."""
        table = self.symbols
        if table is None or number >= table.total:
            raise MalformedError(f"symbol {number} is not in the symbol table")
        (name,) = WORD.unpack_from(self.data, table.start + number * SYMBOL.size)
        return self._string(name, table.strings, table.strings_end - table.strings)

    def has_symbol(self, name: bytes, first: int = 0) -> bool:
        """Whether any symbol from a number on has a name; strings may share their tails, so it may start anywhere."""
        table, starts = self.symbols, []
        if table is None:
            return False
        at = self.data.find(name + b"\0", table.strings, table.strings_end)
        while at >= 0:
            starts.append(at - table.strings)
            at = self.data.find(name + b"\0", at + 1, table.strings_end)
        start = table.start + first * SYMBOL.size
        return bool(starts and Wanted(starts).entries(self.data, start, table.end, SYMBOL.size))

    def content(self, section: int) -> memoryview:
        """A section's bytes in the file."""
        offset = self.offsets[section]
        return self.view[offset : offset + self.sizes[section]]

    def _string(self, start: int, table: int, size: int) -> bytes:
        if start >= size:
            raise MalformedError("a name lies outside of its string table", offset=table)
        return bytes(self.data[table + start : self.data.index(0, table + start)])


def cells(code: str, content: memoryview) -> "array[int]":
    """A table as numbers of one size, `code` as `array` has it; the length must be a multiple of it."""
    found = array(code)
    found.frombytes(content)
    if sys.byteorder == "big":
        found.byteswap()
    return found


# Where more than one in so many entries may be wanted, all are looked at.
_DENSE = 32


class Wanted:
    """A set of 32-bit numbers to be looked for in a column of a table.

    Most entries are told apart by the lowest two bytes of their number, a byte of the whole column at a time.
    """

    def __init__(self, numbers: Collection[int]) -> None:
        self.numbers = frozenset(numbers)
        low, high = bytearray(256), bytearray(256)
        for number in self.numbers:
            low[number & 0xFF] = 1
            high[number >> 8 & 0xFF] = 1
        self._low, self._high = bytes(low), bytes(high)

    def entries(self, data: bytes | bytearray, start: int, end: int, size: int) -> list[tuple[int, int]]:
        """Find (entry, number) where the number at file offset `start` + entry * `size` is wanted."""
        found: list[tuple[int, int]] = []
        low = data[start:end:size].translate(self._low)
        at = low.find(1)
        if at < 0:
            return found
        high = data[start + 1 : end : size].translate(self._high)
        both = int.from_bytes(low, "little") & int.from_bytes(high, "little")
        marks = both.to_bytes(len(low), "little")
        if marks.count(1) > len(marks) // _DENSE:
            # The bytes tell too little apart: every number is looked at.
            column = cells("I", memoryview(data)[start : start + (end - start) // 4 * 4])[:: size // 4]
            numbers = self.numbers
            return [(i, number) for i, number in compress(enumerate(column), map(numbers.__contains__, column))]
        find, numbers, unpack = marks.find, self.numbers, WORD.unpack_from
        at = find(1, at)
        while at >= 0:
            (number,) = unpack(data, start + at * size)
            if number in numbers:
                found.append((at, number))
            at = find(1, at + 1)
        return found


def read(data: bytes | bytearray) -> Elf:
    """Read the headers of a whole object in memory.

    Raises `MalformedError` for what breaks the format, `UnsupportedError` for what is no relocatable object of
    x86-64.
    """
    try:
        return _read(data)
    except struct.error as error:
        raise MalformedError(f"a truncated table ({error})") from error


def _read(data: bytes | bytearray) -> Elf:
    header = HEADER.unpack_from(data)
    if header[0][: len(_IDENT)] != _IDENT or header[3] != _EV_CURRENT:
        raise MalformedError("not a little-endian ELF file with 64-bit addresses", offset=0)
    if header[1] != _ET_REL or header[2] != _EM_X86_64:
        raise UnsupportedError("not a relocatable object for x86-64", offset=16)
    table, count, names_index = header[SHOFF], header[SHNUM], header[SHSTRNDX]
    if header[_SHENTSIZE] != SECTION.size or not 0 < table < len(data):
        raise MalformedError("no section headers of a known size", offset=40)
    first = SECTION.unpack_from(data, table)
    count = count or first[5]
    if names_index == SHN_XINDEX:
        names_index = first[6]
    end = table + count * SECTION.size
    if end > len(data) or not count:
        raise MalformedError("the section headers run past the end of the file", offset=table)
    view = memoryview(data)
    columns = _columns(view[table:end])
    _, types, _, _, offsets, sizes, *_ = columns
    spans = [
        (offset, offset + size)
        for kind, offset, size in zip(types, offsets, sizes, strict=True)
        if size and kind and kind != SHT_NOBITS
    ]
    spans += (0, HEADER.size), (table, end)
    spans.sort()
    starts, ends = zip(*spans, strict=True)
    if ends[-1] > len(data) or any(map(gt, ends, starts[1:])):
        raise MalformedError("sections run past the end of the file or overlap", offset=_bad_span(spans, len(data)))
    if names_index >= count or types[names_index] != SHT_STRTAB or not _terminated(data, columns, names_index):
        raise MalformedError("no section with the names of the sections", offset=62)
    if max(columns[0]) >= sizes[names_index]:
        raise MalformedError("a section's name lies outside of the string table", offset=offsets[names_index])
    return Elf._make((data, view, header, names_index, *columns, _symbols(data, columns), spans))


def _columns(headers: memoryview) -> list[Column]:
    """The fields of all section headers, in the order of a SECTION."""
    words, longs = cells("I", headers), cells("Q", headers)
    return [words[start::16] if narrow else longs[start::8] for start, narrow in _SECTION_FIELDS]


def _bad_span(spans: list[tuple[int, int]], size: int) -> int:
    reach = 0
    for start, end in spans:
        if start < reach or end > size:
            return start
        reach = end
    return 0


def _terminated(data: bytes | bytearray, columns: list[Column], section: int) -> bool:
    offset, size = columns[4][section], columns[5][section]
    return size > 0 and data[offset + size - 1] == 0


def _symbols(data: bytes | bytearray, columns: list[Column]) -> Symbols | None:
    _, types, _, _, offsets, sizes, links, infos, _, entry_sizes = columns
    tables = types.count(SHT_SYMTAB)
    if not tables:
        return None
    index = types.index(SHT_SYMTAB)
    start, size, strings = offsets[index], sizes[index], links[index]
    count = size // SYMBOL.size
    sound = (
        tables == 1
        and size == count * SYMBOL.size
        and entry_sizes[index] == SYMBOL.size
        and infos[index] <= count
        and strings < len(types)
        and types[strings] == SHT_STRTAB
        and _terminated(data, columns, strings)
    )
    if not sound:
        raise MalformedError("a broken symbol table, or more than one", offset=start)
    extended = extended_section = 0
    if SHT_SYMTAB_SHNDX in types:
        extended_section = types.index(SHT_SYMTAB_SHNDX)
        extended = offsets[extended_section]
        if sizes[extended_section] != count * WORD.size or links[extended_section] != index:
            raise MalformedError("a table of section numbers that does not fit the symbol table", offset=extended)
    end = offsets[strings] + sizes[strings]
    return Symbols(index, start, count, infos[index], offsets[strings], end, extended, extended_section)

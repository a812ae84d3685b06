"""What the reader hands on of a relocatable object: the whole file in memory, its tables by columns.

In an object nothing has an address yet. A place is a section's number and an offset in it; who refers to what
is said by relocations, which name symbols by their number.
"""

from array import array
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate, compress
from typing import NamedTuple

from staticcall.abi import elf64
from staticcall.errors import MalformedError
from staticcall.model.form import Form
from staticcall.model.image import Section
from staticcall.model.symbols import MOST_NAMES

# Starts in ascending order, and for each the farthest end of all extents so far: they may overlap.
Extents = tuple[list[int], list[int]]

_SYMBOL_SIZE = elf64.SYMBOL.size
_IS_SECTION = bytes(info & 0xF == elf64.STT_SECTION for info in range(256))
_IS_PLT32 = bytes(byte == elf64.R_X86_64_PLT32 for byte in range(256))
_IS_MINUS_4 = bytes(byte == 256 - 4 for byte in range(256))
_IS_FUNCTION = bytes(info & 0xF == elf64.STT_FUNC for info in range(256))
_IS_UNTYPED = bytes(info & 0xF == elf64.STT_NOTYPE for info in range(256))
# In a file with many sections, what is none of them must not look like one.
_NO_SECTION = 0xFFFF0000
_DAMAGED = "the symbol table is damaged"
_SHARED, _ROOM = 4, 1 << 20
# What the names of keys and trampolines have in common: all of them are found in one walk.
_STEM = b"__SC"


class ObjectSymbol(NamedTuple):
    """One symbol, defined or not; `section` is 0 for an undefined one, and resolved where it does not fit 16 bits."""

    number: int
    name: str
    type: int
    binding: int
    section: int
    value: int
    size: int


class ObjectSymbols:
    """The symbol table, asked by name, by number and by section.

    `table` are its entries, `strings` the names, `extended` the 32-bit section numbers of a file that has too
    many for 16 bits, else empty.
    """

    __slots__ = ("_endings", "_extended", "_infos", "_section_symbols", "_stems", "_strings", "_table")

    def __init__(self, table: bytes, strings: bytes, extended: bytes) -> None:
        self._table = table
        self._strings = strings
        self._extended = elf64.column(extended, "I", 0, 1)
        self._infos = table[4::_SYMBOL_SIZE]
        # Asked for by more than one room, and found by a walk over the table.
        self._endings: dict[bytes, dict[int, bytes]] = {}
        self._section_symbols: dict[int, int] | None = None
        self._stems: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self._infos)

    @property
    def raw(self) -> bytes:
        """The entries as they are in the file."""
        return self._table

    @property
    def strings(self) -> bytes:
        """The names, each with a zero byte behind it."""
        return self._strings

    def place(self, number: int) -> tuple[int, int]:
        """The section of a symbol, resolved, and its value."""
        _, _, _, section, value, _ = elf64.SYMBOL.unpack_from(self._table, number * _SYMBOL_SIZE)
        return self._wide(number, section) if section >= elf64.SHN_LORESERVE else section, value

    def symbol(self, number: int) -> ObjectSymbol:
        """The symbol with this number; raises `MalformedError` where there is none, or its name has no end."""
        if not 0 <= number < len(self):
            raise MalformedError(f"symbol {number} does not exist", advice=_DAMAGED)
        name, info, _, section, value, size = elf64.SYMBOL.unpack_from(self._table, number * _SYMBOL_SIZE)
        end = self._strings.find(b"\0", name)
        if end < 0:
            raise MalformedError(f"the name of symbol {number} runs past the string table", advice=_DAMAGED)
        text = self._strings[name:end].decode("utf-8", "backslashreplace")
        if section >= elf64.SHN_LORESERVE:
            section = self._wide(number, section)
        return ObjectSymbol(number, text, info & 0xF, info >> 4, section, value, size)

    def endings(self, prefix: bytes) -> dict[int, bytes]:
        """What follows the prefix in the name of every symbol that starts with it, by number in table order.

        Raises `MalformedError` where such a name has no end.
        """
        if prefix not in self._endings:
            self._endings[prefix] = self._find(prefix)
        return self._endings[prefix]

    def _find(self, prefix: bytes) -> dict[int, bytes]:
        strings = self._strings
        starts = self._starting(prefix[: len(_STEM)] if prefix.startswith(_STEM) else prefix)
        found: dict[int, bytes] = {}
        # Some symbols may share a name or its end; names of more bytes than this are an attack on the memory.
        room = min(MOST_NAMES, _SHARED * len(strings) + _ROOM)
        for number, name in starts:
            if not strings.startswith(prefix, name):
                continue
            start = name + len(prefix)
            end = strings.find(b"\0", start)
            room -= end - start
            if end < 0 or room < 0:
                what = "runs past the string table" if end < 0 else "is longer than any name"
                raise MalformedError(f"the name of symbol {number} {what}", advice=_DAMAGED)
            found[number] = strings[start:end]
        return found

    def _starting(self, stem: bytes) -> list[tuple[int, int]]:
        """Number and place of the name of every symbol whose name starts with this; that of static calls is kept."""
        if stem == _STEM and self._stems is not None:
            return self._stems
        # Names may share their ends, so every occurrence is a candidate; the table's own offsets decide.
        strings, offsets = self._strings, set[int]()
        place = strings.find(stem)
        while place >= 0:
            offsets.add(place)
            place = strings.find(stem, place + 1)
        starts: list[tuple[int, int]] = []
        if offsets:
            names = elf64.column(self._table, "I", 0, 6)
            starts = [(at, names[at]) for at in compress(range(len(names)), map(offsets.__contains__, names))]
        if stem == _STEM:
            self._stems = starts
        return starts

    def binding(self, number: int) -> int:
        """How far a symbol is seen, STB_LOCAL and so on."""
        return self._infos[number] >> 4

    def places_of(self, numbers: Collection[int]) -> dict[tuple[int, int], int]:
        """The symbol that stands at each place, section and offset, of those among these that are defined."""
        symbols = (elf64.SYMBOL.unpack_from(self._table, number * _SYMBOL_SIZE) for number in numbers)
        found: dict[tuple[int, int], int] = {}
        for number, (_, _, _, section, value, _) in zip(numbers, symbols, strict=True):
            if section != elf64.SHN_UNDEF:
                found[self._wide(number, section) if section >= elf64.SHN_LORESERVE else section, value] = number
        return found

    def sections(self) -> "array[int]":
        """The section number of every symbol, resolved; more than any section's for an absolute or common one."""
        numbers = elf64.column(self._table, "H", 3, 12)
        if not self._extended:
            return numbers
        wide = array("I", numbers)
        for number in compress(range(len(wide)), map(elf64.SHN_LORESERVE.__le__, numbers)):
            wide[number] = self._wide(number, wide[number])
        return wide

    def _wide(self, number: int, section: int) -> int:
        if section == elf64.SHN_XINDEX and number < len(self._extended):
            return self._extended[number]
        return section | _NO_SECTION if self._extended else section

    def section_symbols(self) -> Mapping[int, int]:
        """The number of the STT_SECTION symbol of each section that has one.

        Raises `MalformedError` where one has another value than 0.
        """
        if self._section_symbols is None:
            sections, marks = self.sections(), self._infos.translate(_IS_SECTION)
            if any(compress(elf64.column(self._table, "Q", 1, 3), marks)):
                raise MalformedError("a section's symbol does not stand for its start", advice=_DAMAGED)
            if max(compress(elf64.column(self._table, "I", 0, 6), marks), default=0) >= max(len(self._strings), 1):
                raise MalformedError("the name of a section's symbol runs past the string table", advice=_DAMAGED)
            found: dict[int, int] = {}
            for number in compress(range(len(self)), marks):
                found.setdefault(sections[number], number)
            self._section_symbols = found
        return self._section_symbols

    def functions(self) -> Mapping[int, Extents]:
        """The extents of all functions with a size, by section."""
        return self._extents(_IS_FUNCTION)

    def untyped(self) -> Mapping[int, Extents]:
        """The extents of all symbols with a size and without a type, by section."""
        return self._extents(_IS_UNTYPED)

    def _extents(self, marked: bytes) -> Mapping[int, Extents]:
        marks = self._infos.translate(marked)
        values, sizes = elf64.column(self._table, "Q", 1, 3), elf64.column(self._table, "Q", 2, 3)
        found: dict[int, list[tuple[int, int]]] = {}
        for section, value, size in compress(zip(self.sections(), values, sizes, strict=True), marks):
            if size:
                found.setdefault(section, []).append((value, value + size))
        return {section: _sorted(extents) for section, extents in found.items()}


def _sorted(extents: list[tuple[int, int]]) -> Extents:
    extents.sort()
    return [start for start, _ in extents], list(accumulate((end for _, end in extents), max))


class Relocations:
    """One relocation section by columns: entry `n` is at file offset `offset` + 24 n and applies to section `target`.

    Entries are in the file's order, which need not be that of the places they apply to.
    """

    __slots__ = ("count", "offset", "raw", "section", "target")

    def __init__(self, section: Section, table: memoryview) -> None:
        self.section = section.number
        self.target = section.info
        self.offset = section.offset
        self.count = section.size // elf64.RELA.size
        self.raw = table

    def symbols(self) -> "array[int]":
        """The symbol number of every entry."""
        return elf64.column(self.raw, "I", 3, 6)

    def types(self) -> "array[int]":
        """The type of every entry."""
        return elf64.column(self.raw, "I", 2, 6)

    def places(self) -> "array[int]":
        """The offset in the target section of every entry."""
        return elf64.column(self.raw, "Q", 0, 3)

    def addends(self) -> "array[int]":
        """The addend of every entry."""
        return elf64.column(self.raw, "q", 2, 3)

    def branch_ends(self) -> list[int]:
        """Where branches end in the target section, as far as R_X86_64_PLT32 shows: no other instruction has it."""
        # A byte of each entry at a time: of its type, and of the addend -4 of a displacement that ends with its branch.
        step, end = elf64.RELA.size, self.count * elf64.RELA.size
        table = bytes(self.raw)
        types = table[8:end:step].translate(_IS_PLT32)
        addends = table[16:end:step].translate(_IS_MINUS_4)
        both = int.from_bytes(types, "little") & int.from_bytes(addends, "little")
        return [place + 4 for place in compress(self.places(), both.to_bytes(len(types), "little"))]

    def entry(self, number: int) -> tuple[int, int, int, int]:
        """(place, type, symbol number, addend) of one entry."""
        place, info, addend = elf64.RELA.unpack_from(self.raw, number * elf64.RELA.size)
        return place, info & 0xFFFFFFFF, info >> 32, addend


class ObjectFile(NamedTuple):
    """A relocatable object.

    `sections` are in header order, number 0 included; `symtab` and `extended` are the numbers of the symbol table
    and of its 32-bit section numbers, 0 where there is none. `end` is where the ELF file ends and, in a signed
    module, its signature begins; `entries` are the relocation sections by the number of the section that they apply to.
    """

    data: bytes
    sections_at: int
    names_index: int
    sections: tuple[Section, ...]
    symtab: int
    extended: int
    symbols: ObjectSymbols
    end: int
    entries: Mapping[int, list[Section]]

    def content(self, section: Section) -> bytes:
        """The bytes of a section in the file; none for one that only exists in memory."""
        if section.type == elf64.SHT_NOBITS:
            return b""
        return self.data[section.offset : section.offset + section.size]

    def relocations(self, section: Section) -> Relocations:
        """The entries of a relocation section with addends."""
        return Relocations(section, memoryview(self.data)[section.offset : section.offset + section.size])

    def relocation_sections(self) -> Iterator[Section]:
        """The relocation sections with addends that name symbols of the symbol table, in header order."""
        for section in self.sections:
            if section.type == elf64.SHT_RELA and section.link == self.symtab:
                yield section

    def relocations_by_target(self) -> Mapping[int, list[Section]]:
        """The relocation sections, by the number of the section that they apply to."""
        return self.entries

    @property
    def signed(self) -> bool:
        """Whether a module's signature is appended to the file."""
        return self.end < len(self.data)


class RelocatedSite(NamedTuple):
    """A call or jump of an object that leads to a trampoline.

    `offset` is that of the instruction's first byte, prefixes included, in section number `section`; the opcode
    comes `opcode` bytes later. `trampoline` is the number of the trampoline's symbol. `entry` is the file offset of
    the relocation that says so, None where the instruction itself does.
    """

    section: int
    offset: int
    opcode: int
    form: Form
    trampoline: int
    entry: int | None

    @property
    def tail(self) -> bool:
        """Whether control does not come back to the site."""
        return self.form not in _CALLS


_CALLS = frozenset({Form.CALL, Form.PREFIXED_CALL, Form.INDIRECT_CALL})

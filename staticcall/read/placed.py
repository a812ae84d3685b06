"""A relocatable object read as if it were linked: every section gets an address, every relocation is applied.

So whatever is known about linked images holds for objects too: a call leads to an address where a trampoline is, a
key's slot holds the address of a function. The addresses are pretended; what may be said of a site's cache line is
said from its section's alignment alone, or for a module from what its loader does, and what shall be changed is
changed in the relocations.

Undefined symbols get places of their own behind the sections, and so does a slot for each symbol that is reached
through the GOT. Source of the arithmetic: AMD64 psABI, table 4.9, relocation types.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Final

from staticcall.abi import elf64, module_layout, static_call
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.container import Layer
from staticcall.model.image import Image, NameSource, Placement, Relocation, Section, Segment
from staticcall.model.object import ObjectFile
from staticcall.model.placed_symbols import PlacedSymbols, SymbolAddresses
from staticcall.read.notes import build_id_of
from staticcall.read.object import BytesSource

_KERNEL_BASE: Final = 0xFFFF_FFFF_8100_0000
_USER_BASE: Final = 0x40_0000
# What only objects of kernels and modules have.
_KERNEL_SECTIONS: Final = (
    ".modinfo",
    ".gnu.linkonce.this_module",
    ".static_call_sites",
    ".static_call_tramp_key",
    ".altinstructions",
    ".orc_unwind",
    ".return_sites",
    ".retpoline_sites",
    ".export_symbol",
    ".initcall",
    "__mcount_loc",
    "__ksymtab",
    "__tracepoints",
    "__jump_table",
)
# The end of one section is not the start of the next.
_GAP: Final = 16
_ROOM: Final = 16
_ADDRESS_SPACE: Final = 1 << 31

# Types with the width of their field in bytes, and whether they count from the field itself.
_ABSOLUTE, _RELATIVE, _THROUGH_GOT = range(3)
_UNKNOWN: Final = (0, _ABSOLUTE)
_WIDEST: Final = 8
_TYPE_MASK: Final = 0xFFFF_FFFF
_TYPES: Final = {
    elf64.R_X86_64_64: (8, _ABSOLUTE),
    elf64.R_X86_64_32: (4, _ABSOLUTE),
    elf64.R_X86_64_32S: (4, _ABSOLUTE),
    elf64.R_X86_64_PC8: (1, _RELATIVE),
    elf64.R_X86_64_PC32: (4, _RELATIVE),
    elf64.R_X86_64_PLT32: (4, _RELATIVE),
    elf64.R_X86_64_PC64: (8, _RELATIVE),
    elf64.R_X86_64_GOTPCREL: (4, _THROUGH_GOT),
    elf64.R_X86_64_GOTPCRELX: (4, _THROUGH_GOT),
    elf64.R_X86_64_REX_GOTPCRELX: (4, _THROUGH_GOT),
}


def place_object(path: Path, file: ObjectFile, layers: tuple[Layer, ...] = ()) -> Image:
    """Read an object as an image of type REL; raises `MalformedError`, or `UnsupportedError` past 2 GiB."""
    kernel = any(section.name.startswith(_KERNEL_SECTIONS) for section in file.sections)
    _check_places(file)
    places = _places_in_page(file)
    bases, outside = _bases(file, _KERNEL_BASE if kernel else _USER_BASE, places)
    undefined, got = _undefined(file, outside)
    addresses = SymbolAddresses(file.symbols, bases, undefined)
    placement = Placement(
        file, bases, addresses, undefined, got + elf64.POINTER_SIZE * len(addresses), frozenset(places)
    )
    if placement.end - min(filter(None, bases), default=outside) >= _ADDRESS_SPACE:
        raise UnsupportedError("is larger than 2 GiB", advice="give the objects that it was made of")
    # Thousands of sections, and `_replace` takes its time.
    sections = tuple(
        s if base == s.address else Section(*s[:4], base, *s[5:]) for s, base in zip(file.sections, bases, strict=True)
    )
    return Image(
        path=path,
        source=PlacedSource(placement, got),
        elf_type=elf64.ET_REL,
        sections=sections,
        segments=_segments(sections, outside, placement.end),
        symbols=PlacedSymbols(placement),
        relocations=_got(file, got),
        build_id=build_id_of(BytesSource(file.data), sections, ()),
        placement=placement,
        layers=layers,
        name_source=NameSource("symtab" if file.symtab else "none"),
    )


def _check_places(file: ObjectFile) -> None:
    """See that keys and trampolines, where they are defined, are in sections."""
    for prefix in (static_call.KEY_PREFIX, static_call.TRAMPOLINE_PREFIX):
        places = file.symbols.places_of(file.symbols.endings(prefix.encode()))
        for (section, value), number in places.items():
            if section >= len(file.sections) or value >= max(file.sections[section].size, 1):
                name = file.symbols.symbol(number).name
                raise MalformedError(
                    f"symbol {number} ({name}) lies in no section", advice="the symbol table is damaged"
                )


def _places_in_page(file: ObjectFile) -> Mapping[int, int]:
    """Where in a page the kernel's loader puts the code of a module, by section; nothing for any other object."""
    by_name = {section.name: section for section in file.sections}
    if module_layout.THIS_MODULE not in by_name:
        return {}
    information = by_name.get(static_call.MODULE_INFO_SECTION)
    vermagic = module_layout.vermagic_of(file.content(information)) if information else ""
    code = (s for s in file.sections if s.flags & elf64.SHF_EXECINSTR)
    sections = (module_layout.CodeSection(s.number, s.name, s.flags, s.size, s.alignment) for s in code)
    return module_layout.places_in_page(sections, vermagic)


def _bases(file: ObjectFile, base: int, places: Mapping[int, int]) -> tuple[array[int], int]:
    """An address for every section that is loaded, tables of sites side by side; and the first one behind.

    `places` says where in a page some sections begin.
    """
    bases = array("Q", bytes(8 * len(file.sections)))
    tables = [s for s in file.sections if s.flags & elf64.SHF_ALLOC and s.name in static_call.TABLE_SECTIONS]
    address = base
    for section in tables:
        bases[section.number] = address
        address += section.size
    for section in file.sections:
        if section.flags & elf64.SHF_ALLOC and not bases[section.number]:
            address += _GAP
            if section.number in places:
                address += (places[section.number] - address) % module_layout.PAGE
            else:
                address += -address % alignment_of(section)
            bases[section.number] = address
            address += section.size
            if address - base >= _ADDRESS_SPACE:
                raise UnsupportedError("is larger than 2 GiB", advice="give the objects that it was made of")
    address += _GAP
    return bases, address + -address % _ROOM


def alignment_of(section: Section) -> int:
    """A section's alignment in bytes, 1 where it has none, or one that no linker takes."""
    alignment = section.alignment
    return alignment if 0 < alignment < _ADDRESS_SPACE and not alignment & (alignment - 1) else 1


def _undefined(file: ObjectFile, end: int) -> tuple[Mapping[int, int], int]:
    """A place for each undefined symbol, by its number, from an address on; and the first address behind them."""
    sections = file.symbols.sections()
    names = elf64.column(file.symbols.raw, "I", 0, 6)
    numbers = [number for number in compress(range(len(sections)), map(not_, sections)) if names[number]]
    stop = end + _ROOM * len(numbers)
    return dict(zip(numbers, range(end, stop, _ROOM), strict=True)), stop


def _segments(sections: tuple[Section, ...], outside: int, end: int) -> tuple[Segment, ...]:
    """Each loaded section as a segment of its own, and the place of what is not in the file as memory without bytes."""
    segments = [
        Segment(
            elf64.PT_LOAD,
            elf64.PF_X if s.flags & elf64.SHF_EXECINSTR else 0,
            s.offset,
            s.address,
            0 if s.type == elf64.SHT_NOBITS else s.size,
            s.size,
        )
        for s in sections
        if s.address and s.size
    ]
    return (*segments, Segment(elf64.PT_LOAD, 0, 0, outside, 0, end - outside))


def _got(file: ObjectFile, got: int) -> Mapping[int, Relocation]:
    """The slots of the pretended GOT that trampolines are reached through, with the name that each holds."""
    prefix = static_call.TRAMPOLINE_PREFIX
    return {
        got + elf64.POINTER_SIZE * number: Relocation(
            elf64.R_X86_64_64, None, 0, prefix + name.decode(errors="backslashreplace")
        )
        for number, name in file.symbols.endings(prefix.encode()).items()
    }


class PlacedSource(BytesSource):
    """The bytes of an object with its relocations applied, as they are asked for: all of a table, a little of the code.

    A module has ten thousand relocations, and a report asks for what is near some of them.
    """

    def __init__(self, placement: Placement, got: int) -> None:
        super().__init__(placement.file.data)
        self._placement = placement
        self._got = got
        file = placement.file
        entries = file.relocations_by_target()
        placed = (file.sections[number] for number in entries if placement.bases[number])
        places = sorted((section.offset, section.number) for section in placed)
        self._starts = [offset for offset, _ in places]
        self._numbers = [number for _, number in places]
        self._entries = entries
        self._tables: dict[int, list[_Table]] = {}

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from a file offset on, as they are once relocated."""
        position = bisect_right(self._starts, offset) - 1
        if position < 0:
            return super().read(offset, size)
        section = self._placement.file.sections[self._numbers[position]]
        start = offset - section.offset
        stop, end = start + size, section.size
        if section.type == elf64.SHT_NOBITS or stop > end:
            return super().read(offset, size)
        tables = self._tables.get(section.number)
        if tables is None:
            tables = [_Table(self._placement, section, own, self._got) for own in self._entries[section.number]]
            self._tables[section.number] = tables
        # What begins before may reach into it, and what begins in it may reach out of it.
        low, high = max(start - _WIDEST + 1, 0), min(stop + _WIDEST - 1, end)
        content = bytearray(self._data[section.offset + low : section.offset + high])
        for table in tables:
            table.apply(content, low, stop)
        return bytes(content[start - low : stop - low])


class _Table:
    """One section of relocations; raises `MalformedError` where one is for a place outside of its section."""

    def __init__(self, placement: Placement, section: Section, own: Section, got: int) -> None:
        self._section = section
        self._addresses = placement.addresses
        self._base = placement.bases[section.number]
        self._got = got
        table = placement.file.relocations(own)
        self._raw, self._offset = table.raw, table.offset
        places = table.places().tolist()
        # In nearly all objects they come in the order of the places, and then need no order of their own.
        self._places = sorted(places)
        self._order: Sequence[int] = range(len(places))
        if self._places != places:
            self._order = sorted(self._order, key=places.__getitem__)
        # Only those near the end of the section may reach out of it.
        for number in sorted(self._order[bisect_left(self._places, max(section.size - _WIDEST, 0)) :]):
            place, info, _ = self._entry(number)
            width, _ = _TYPES.get(info & _TYPE_MASK, _UNKNOWN)
            if width and place + width > section.size:
                raise self._leads_nowhere(number, "place")

    def _entry(self, number: int) -> tuple[int, int, int]:
        return elf64.RELA.unpack_from(self._raw, number * elf64.RELA.size)

    def _leads_nowhere(self, number: int, what: str) -> MalformedError:
        return MalformedError(
            f"relocation {number} of {self._section.name} names a {what} that does not exist",
            offset=self._offset + number * elf64.RELA.size,
            advice="the object is damaged",
        )

    def apply(self, content: bytearray, start: int, stop: int) -> None:
        """Apply what begins from offset `start` of the section up to `stop`; `content` begins at `start`."""
        first = bisect_left(self._places, start)
        behind = bisect_left(self._places, stop, first)
        if first == behind:
            return
        numbers = self._order[first:behind]
        if not isinstance(numbers, range):
            # Where two overlap, the one that comes later in the file counts.
            numbers = sorted(numbers)
        base, addresses, room, unpack = self._base, self._addresses, len(content), elf64.RELA.unpack_from
        count = len(addresses)
        for number in numbers:
            place, info, addend = unpack(self._raw, number * elf64.RELA.size)
            width, way = _TYPES.get(info & _TYPE_MASK, _UNKNOWN)
            at = place - start
            if not width or at + width > room:
                continue
            symbol = info >> 32
            if symbol >= count:
                raise self._leads_nowhere(number, "symbol")
            value = addresses[symbol] + addend
            if way == _THROUGH_GOT:
                value = self._got + elf64.POINTER_SIZE * symbol + addend
            if way != _ABSOLUTE:
                value -= base + place
            content[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

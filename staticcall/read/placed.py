"""A relocatable object read as if it were linked: every section gets an address, every relocation is applied.

So whatever is known about linked images holds for objects too: a call leads to an address where a trampoline is, a
key's slot holds the address of a function. The addresses are pretended; what may be said of a site's cache line is
said from its section's alignment alone, and what shall be changed is changed in the relocations.

Undefined symbols get places of their own behind the sections, and so does a slot for each symbol that is reached
through the GOT. Source of the arithmetic: AMD64 psABI, table 4.9, relocation types.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.image import Image, Placement, Relocation, Section, Segment
from staticcall.model.object import ObjectFile
from staticcall.model.symbols import SymbolTable
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


def place_object(path: Path, file: ObjectFile) -> Image:
    """Read an object as an image of type REL; raises `MalformedError`, or `UnsupportedError` past 2 GiB."""
    kernel = any(section.name.startswith(_KERNEL_SECTIONS) for section in file.sections)
    _check_places(file)
    bases, outside = _bases(file, _KERNEL_BASE if kernel else _USER_BASE)
    addresses, undefined, got = _addresses(file, bases, outside)
    placement = Placement(file, bases, addresses, undefined, got + elf64.POINTER_SIZE * len(addresses))
    if placement.end - min(filter(None, bases), default=outside) >= _ADDRESS_SPACE:
        raise UnsupportedError("is larger than 2 GiB", advice="give the objects that it was made of")
    sections = tuple(s._replace(address=bases[s.number]) for s in file.sections)
    return Image(
        path=path,
        source=PlacedSource(placement, got),
        elf_type=elf64.ET_REL,
        sections=sections,
        segments=_segments(sections, outside, placement.end),
        symbols=_symbols(file, placement),
        relocations=_got(file, got),
        build_id=build_id_of(BytesSource(file.data), sections, ()),
        placement=placement,
    )


def _check_places(file: ObjectFile) -> None:
    """See that keys and trampolines, where they are defined, are in sections."""
    for prefix in (static_call.KEY_PREFIX, static_call.TRAMPOLINE_PREFIX):
        for number in file.symbols.endings(prefix.encode()):
            symbol = file.symbols.symbol(number)
            if not symbol.section:
                continue
            if symbol.section >= len(file.sections) or symbol.value >= max(file.sections[symbol.section].size, 1):
                raise MalformedError(
                    f"symbol {number} ({symbol.name}) lies in no section", advice="the symbol table is damaged"
                )


def _bases(file: ObjectFile, base: int) -> tuple[array[int], int]:
    """An address for every section that is loaded, tables of sites side by side; and the first one behind."""
    bases = array("Q", bytes(8 * len(file.sections)))
    tables = [s for s in file.sections if s.flags & elf64.SHF_ALLOC and s.name in static_call.TABLE_SECTIONS]
    address = base
    for section in tables:
        bases[section.number] = address
        address += section.size
    for section in file.sections:
        if section.flags & elf64.SHF_ALLOC and not bases[section.number]:
            address += _GAP
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


def _addresses(file: ObjectFile, bases: array[int], end: int) -> tuple[array[int], Mapping[int, int], int]:
    """The address of every symbol; those of the undefined ones, by number; and the first address behind them."""
    table = file.symbols.raw
    values = elf64.column(table, "Q", 1, 3)
    names = elf64.column(table, "I", 0, 6)
    undefined: dict[int, int] = {}
    for number, section in enumerate(file.symbols.sections()):
        if section == elf64.SHN_UNDEF:
            if names[number]:
                values[number] = undefined[number] = end
                end += _ROOM
        elif section < len(bases):
            values[number] = values[number] + bases[section] & 0xFFFF_FFFF_FFFF_FFFF
    return values, undefined, end


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


def _symbols(file: ObjectFile, placement: Placement) -> SymbolTable:
    """The symbol table with addresses for values; what is undefined is defined at the place that it got."""
    table = bytearray(file.symbols.raw)
    pack, size = elf64.POINTER.pack_into, elf64.SYMBOL.size
    for number, address in enumerate(placement.addresses):
        pack(table, number * size + 8, address)
    absolute = elf64.SHN_ABS.to_bytes(2, "little")
    for number in placement.undefined:
        table[number * size + 6 : number * size + 8] = absolute
    strings = b""
    if file.symtab:
        strings = file.content(file.sections[file.sections[file.symtab].link])
    return SymbolTable(bytes(table), strings)


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
    """The bytes of an object with its relocations applied, section by section as they are asked for."""

    def __init__(self, placement: Placement, got: int) -> None:
        super().__init__(placement.file.data)
        self._placement = placement
        self._got = got
        file = placement.file
        entries = self._entries = file.relocations_by_target()
        placed = (file.sections[number] for number in entries if placement.bases[number])
        places = sorted((section.offset, section.number) for section in placed)
        self._starts = [offset for offset, _ in places]
        self._numbers = [number for _, number in places]
        self._done: dict[int, bytearray] = {}

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from a file offset on, as they are once relocated."""
        position = bisect_right(self._starts, offset) - 1
        if position >= 0:
            section = self._placement.file.sections[self._numbers[position]]
            start = offset - section.offset
            if section.type != elf64.SHT_NOBITS and start + size <= section.size:
                return bytes(self._relocated(section)[start : start + size])
        return super().read(offset, size)

    def _relocated(self, section: Section) -> bytearray:
        done = self._done.get(section.number)
        if done is None:
            done = self._done[section.number] = bytearray(self._placement.file.content(section))
            for own in self._entries[section.number]:
                self._apply(section, own, done)
        return done

    def _apply(self, section: Section, own: Section, content: bytearray) -> None:
        table = self._placement.file.relocations(own)
        base, addresses = self._placement.bases[section.number], self._placement.addresses
        columns = zip(table.places(), table.types(), table.symbols(), table.addends(), strict=True)
        for number, (place, kind, symbol, addend) in enumerate(columns):
            width, way = _TYPES.get(kind, (0, _ABSOLUTE))
            if not width:
                continue
            if place + width > len(content) or symbol >= len(addresses):
                what = "place" if symbol < len(addresses) else "symbol"
                raise MalformedError(
                    f"relocation {number} of {section.name} names a {what} that does not exist",
                    offset=table.offset + number * elf64.RELA.size,
                    advice="the object is damaged",
                )
            value = addresses[symbol] + addend
            if way == _THROUGH_GOT:
                value = self._got + elf64.POINTER_SIZE * symbol + addend
            if way != _ABSOLUTE:
                value -= base + place
            content[place : place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

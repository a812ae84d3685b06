"""Dynamic relocations: for a position-independent image, they say what a pointer will hold when it runs.

`.rela.dyn` entries carry the value as addend, and the slot's own bytes are ignored. `.relr.dyn` packs
relative relocations: an even word is the address of a slot, an odd word a bitmap of the 63 slots behind
the last one; the value is the slot's own bytes. Both are found through the dynamic segment, which a
stripped file keeps. Source: gABI chapter 5, AMD64 psABI section 4.4, the gABI's SHT_RELR.
"""

from __future__ import annotations

from collections.abc import Mapping

from staticcall.abi import elf64
from staticcall.errors import MalformedError
from staticcall.model.image import ByteSource, Relocation, Segment
from staticcall.read.strings import Strings

_RELR_BITS = 63


def read_relocations(source: ByteSource, segments: tuple[Segment, ...]) -> Mapping[int, Relocation]:
    """Map the linked address of every dynamically relocated 8-byte slot to its relocation."""
    dynamic = next((s for s in segments if s.type == elf64.PT_DYNAMIC and s.file_size), None)
    if dynamic is None:
        return {}
    tags: dict[int, int] = {}
    entries = source.read(dynamic.offset, dynamic.file_size // elf64.DYNAMIC.size * elf64.DYNAMIC.size)
    for tag, value in elf64.DYNAMIC.iter_unpack(entries):
        if tag == elf64.DT_NULL:
            break
        tags.setdefault(tag, value)
    loads = tuple(s for s in segments if s.type == elf64.PT_LOAD)
    relocations = _packed(source, loads, tags)
    relocations.update(_with_addends(source, loads, tags))
    return relocations


def _offset_of(loads: tuple[Segment, ...], address: int, size: int, what: str) -> int:
    for load in loads:
        if load.address <= address and address + size <= load.address + load.file_size:
            return load.offset + address - load.address
    raise MalformedError(
        f"{what} at {address:#x} ({size} bytes) lies outside of what the file loads",
        advice="the dynamic segment is damaged",
    )


def _table(source: ByteSource, loads: tuple[Segment, ...], place: tuple[int, int], entry: int, what: str) -> bytes:
    address, size = place
    if not address or not size:
        return b""
    if size % entry:
        raise MalformedError(f"{what} is no array of {entry}-byte entries", advice="the dynamic segment is damaged")
    return source.read(_offset_of(loads, address, size, what), size)


def _packed(source: ByteSource, loads: tuple[Segment, ...], tags: dict[int, int]) -> dict[int, Relocation]:
    place = (tags.get(elf64.DT_RELR, 0), tags.get(elf64.DT_RELRSZ, 0))
    words = elf64.column(_table(source, loads, place, elf64.POINTER_SIZE, "the packed relocation table"), "Q", 0, 1)
    relocation = Relocation(elf64.R_X86_64_RELATIVE, None, 0, "")
    found: dict[int, Relocation] = {}
    base = 0
    # Each of these slots holds its own value, so the file has no room for more; eight bytes can name 63.
    most = source.size // elf64.POINTER_SIZE
    for word in words:
        if len(found) > most:
            raise MalformedError(
                f"the packed relocation table at {place[0]:#x} names more places than the file has",
                advice="the dynamic segment is damaged",
            )
        if not word & 1:
            found[word] = relocation
            base = word + elf64.POINTER_SIZE
            continue
        bits, address = word >> 1, base
        while bits:
            if bits & 1:
                found[address] = relocation
            bits >>= 1
            address += elf64.POINTER_SIZE
        base += _RELR_BITS * elf64.POINTER_SIZE
    return found


def _with_addends(source: ByteSource, loads: tuple[Segment, ...], tags: dict[int, int]) -> dict[int, Relocation]:
    address, size = tags.get(elf64.DT_RELA, 0), tags.get(elf64.DT_RELASZ, 0)
    table = _table(source, loads, (address, size), elf64.RELA.size, "the relocation table")
    if not table:
        return {}
    start = _offset_of(loads, address, size, "the relocation table")
    strings = _dynamic_strings(source, loads, tags)
    found: dict[int, Relocation] = {}
    for index, (slot, info, addend) in enumerate(elf64.RELA.iter_unpack(table)):
        symbol = _symbol_name(source, loads, tags, strings, info >> 32) if info >> 32 else ""
        found[slot] = Relocation(info & 0xFFFFFFFF, start + index * elf64.RELA.size, addend, symbol)
    return found


def _dynamic_strings(source: ByteSource, loads: tuple[Segment, ...], tags: dict[int, int]) -> Strings:
    place = (tags.get(elf64.DT_STRTAB, 0), tags.get(elf64.DT_STRSZ, 0))
    data = _table(source, loads, place, 1, "the dynamic string table")
    offset = _offset_of(loads, *place, "the dynamic string table") if data else 0
    return Strings(data, offset, "a dynamic symbol's name")


def _symbol_name(
    source: ByteSource, loads: tuple[Segment, ...], tags: dict[int, int], strings: Strings, index: int
) -> str:
    size = elf64.SYMBOL.size
    entry_at = _offset_of(loads, tags.get(elf64.DT_SYMTAB, 0) + index * size, size, "a dynamic symbol")
    return strings.at(elf64.SYMBOL.unpack(source.read(entry_at, size))[0]) or "?"

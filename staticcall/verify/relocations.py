"""What the dynamic linker does to the few places that matter: keys' slots, and pointers that sites read.

    .rela.dyn   r_offset, r_info, r_addend; for R_X86_64_RELATIVE the value is the addend plus the load
                address, and the place's own bytes are ignored
    .relr.dyn   an even entry is an address, each odd one after it a map of the next 63 words; the value is
                the place's own bytes plus the load address

Sources: System V gABI, chapter 5, and its proposal for SHT_RELR; AMD64 psABI, section 4.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from enum import Enum
from struct import Struct
from typing import NamedTuple

from elftools.elf.enums import ENUM_D_TAG, ENUM_RELOC_TYPE_x64

from staticcall.errors import MalformedError, UnsupportedError
from staticcall.verify.layout import Layout
from staticcall.verify.source import Source, Span

_DYNAMIC = Struct("<QQ")
_RELA = Struct("<QQq")
_ADDEND_OFFSET = 16
_WORD = Struct("<Q")
_SYMBOL = Struct("<IBxHQ8x")
_CHUNK = _RELA.size << 14
_WORDS_PER_MAP = 63

_RELATIVE = ENUM_RELOC_TYPE_x64["R_X86_64_RELATIVE"]
_SYMBOLIC = frozenset({ENUM_RELOC_TYPE_x64["R_X86_64_64"], ENUM_RELOC_TYPE_x64["R_X86_64_GLOB_DAT"]})
# Packed relocations of Android: unread, so every slot would look as if it had none.
_UNREAD_TAGS = frozenset({0x6000000F, 0x60000011})


class Carrier(Enum):
    """What holds the value of a pointer."""

    PLAIN = "its own bytes, taken as they are"
    ADDEND = "the addend of its relocation"
    PACKED = "its own bytes, relocated"
    SYMBOL = "a symbol that is looked up at run time"
    ZEROS = "nothing: memory that the file does not store"


class Pointer(NamedTuple):
    """How one 8-byte place gets its value.

    `offset` is the file offset of the eight bytes that hold the value, None where only run time knows it, or
    where it is zero without any bytes. `guess` is the address of this file's own definition of the symbol that
    is looked up at run time, if there is one.
    """

    carrier: Carrier
    offset: int | None
    guess: int | None = None


class _Entry(NamedTuple):
    """One entry of .rela.dyn: where it stands in the file and what it says."""

    offset: int
    type: int
    symbol: int
    addend: int


def read_pointers(source: Source, layout: Layout, addresses: Collection[int]) -> dict[int, Pointer]:
    """Tell what holds the value of the pointer at each linked address; those outside of the file are left out.

    Raises `MalformedError` for broken dynamic tables, `UnsupportedError` for tables of an unknown kind.
    """
    tags = _tags(source, layout)
    explicit = _explicit(source, layout, tags, addresses)
    packed = _packed(source, layout, tags, addresses)
    found = {}
    for address in addresses:
        own = layout.offset_of(address, _WORD.size)
        entries = explicit.get(address, [])
        if own is None:
            if not entries and address not in packed and layout.is_zeros(address, _WORD.size):
                found[address] = Pointer(Carrier.ZEROS, None)
            continue
        if not entries:
            found[address] = Pointer(Carrier.PACKED if address in packed else Carrier.PLAIN, own)
        elif len(entries) == 1 and entries[0].type == _RELATIVE and address not in packed:
            found[address] = Pointer(Carrier.ADDEND, entries[0].offset)
        else:  # also a slot with two relocations: what comes of it depends on their order
            found[address] = Pointer(Carrier.SYMBOL, None, _definition(source, layout, tags, entries[0]))
    return found


def _tags(source: Source, layout: Layout) -> dict[int, int]:
    if layout.dynamic is None:
        return {}
    size = layout.dynamic.size - layout.dynamic.size % _DYNAMIC.size
    tags: dict[int, int] = {}
    for tag, value in _DYNAMIC.iter_unpack(source.read(layout.dynamic.offset, size)):
        if tag == ENUM_D_TAG["DT_NULL"]:
            break
        tags.setdefault(tag, value)
    if tags.keys() & _UNREAD_TAGS:
        raise UnsupportedError("dynamic relocations in Android's packed format", path=source.path)
    return tags


def _table(source: Source, layout: Layout, tags: dict[int, int], name: str, entry: Struct) -> Span:
    """Locate the table that DT_`name` gives the address of and DT_`name`SZ the size; empty without one."""
    address, size = tags.get(ENUM_D_TAG[f"DT_{name}"]), tags.get(ENUM_D_TAG[f"DT_{name}SZ"], 0)
    if address is None or not size:
        return Span(0, 0)
    offset = layout.offset_of(address, size)
    if offset is None or size % entry.size:
        raise MalformedError(f"the DT_{name} table at {address:#x} is broken", path=source.path)
    return Span(offset, size)


def _explicit(
    source: Source, layout: Layout, tags: dict[int, int], addresses: Collection[int]
) -> dict[int, list[_Entry]]:
    table = _table(source, layout, tags, "RELA", _RELA)
    wanted = frozenset(addresses)
    found: dict[int, list[_Entry]] = {}
    for start in range(table.offset, table.end, _CHUNK):
        chunk = source.read(start, min(_CHUNK, table.end - start))
        for i, (address, info, addend) in enumerate(_RELA.iter_unpack(chunk)):
            if address in wanted:
                entry = _Entry(start + i * _RELA.size + _ADDEND_OFFSET, info & 0xFFFFFFFF, info >> 32, addend)
                found.setdefault(address, []).append(entry)
    return found


def _packed(source: Source, layout: Layout, tags: dict[int, int], addresses: Collection[int]) -> frozenset[int]:
    table = _table(source, layout, tags, "RELR", _WORD)
    return frozenset(_unpack(source.read(*table), sorted(addresses))) if table.size else frozenset()


def _unpack(table: bytes, wanted: list[int]) -> Iterator[int]:
    """Those of the wanted addresses that a .relr.dyn table relocates; every entry costs bisections only."""
    base = 0
    for (entry,) in _WORD.iter_unpack(table):
        if entry & 1:
            stop = base + _WORDS_PER_MAP * _WORD.size
            for address in wanted[bisect_left(wanted, base) : bisect_left(wanted, stop)]:
                word, rest = divmod(address - base, _WORD.size)
                if not rest and entry >> (word + 1) & 1:
                    yield address
            base = stop
        else:
            at = bisect_left(wanted, entry)
            if at < len(wanted) and wanted[at] == entry:
                yield entry
            base = entry + _WORD.size


def _definition(source: Source, layout: Layout, tags: dict[int, int], entry: _Entry) -> int | None:
    """Look up this file's own definition of the symbol that a pointer is bound to at run time."""
    table = tags.get(ENUM_D_TAG["DT_SYMTAB"])
    if entry.type not in _SYMBOLIC or table is None:
        return None
    offset = layout.offset_of(table + entry.symbol * _SYMBOL.size, _SYMBOL.size)
    if offset is None:
        return None
    _, _, index, value = _SYMBOL.unpack(source.read(offset, _SYMBOL.size))
    return int(value) + entry.addend if index else None

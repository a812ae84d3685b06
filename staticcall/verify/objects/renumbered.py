"""Sections that hold symbol numbers follow when symbols are moved.

Relocations (SHT_RELA, SHT_REL), the signature symbol of a group (its sh_info), the address-significance table
and the older form of the call graph profile of LLVM. The table of extended section numbers is ordered by
symbol and is judged with the symbol table.

Sources: System V gABI, chapter 4; LLVM, "Extensions".
"""

from array import array
from collections.abc import Mapping
from typing import NamedTuple

from staticcall.errors import MalformedError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf, Wanted

_PROFILE_CELLS = 4  # from, to, weight (2)
_PROFILE_SIZE = 16  # the newer form has entries of 8 bytes, without symbols


class Renumbering(NamedTuple):
    """What became of the symbols: the new ones are `added`, and `moved` leads from old numbers to new ones.

    `wanted` finds the moved ones.
    """

    added: range
    moved: dict[int, int]
    wanted: Wanted


def check_numbers(before: Elf, after: Elf, section: int, renumbering: Renumbering) -> bool:
    """Whether a section's content, and a group's signature, is what it was but for moved symbols.

    False also for a section that holds no symbol numbers and has another content.
    """
    kind, moved = before.types[section], renumbering.moved
    own = before.symbols
    if own is not None and before.links[section] == own.section:
        if kind in (elf.SHT_RELA, elf.SHT_REL):
            size = elf.RELA.size if kind == elf.SHT_RELA else elf.REL.size
            return _same_relocations(before, after, section, renumbering, size)
        if kind == elf.SHT_GROUP:
            signature = before.infos[section]
            same = after.infos[section] == moved.get(signature, signature)
            # Members may have been added at the end, which is judged with the new sections.
            return same and after.data.startswith(before.content(section), after.offsets[section])
        if kind == elf.SHT_LLVM_ADDRSIG:
            old, new = _uleb128(bytes(before.content(section))), _uleb128(bytes(after.content(section)))
            return [moved.get(number, number) for number in old] == new
        if kind == elf.SHT_LLVM_CALL_GRAPH_PROFILE and before.entry_sizes[section] == _PROFILE_SIZE:
            return _same_profile(before, after, section, moved)
    return before.infos[section] == after.infos[section] and before.content(section) == after.content(section)


def _same_relocations(before: Elf, after: Elf, section: int, renumbering: Renumbering, size: int) -> bool:
    start, length = before.offsets[section], before.sizes[section]
    if length % size:
        raise MalformedError("a relocation table with half an entry", offset=start)
    table = bytearray(before.content(section))
    moved = renumbering.moved
    for entry, number in renumbering.wanted.entries(before.data, start + elf.SYMBOL_FIELD, start + length, size):
        elf.WORD.pack_into(table, entry * size + elf.SYMBOL_FIELD, moved[number])
    return after.data.startswith(table, after.offsets[section])


def _same_profile(before: Elf, after: Elf, section: int, moved: Mapping[int, int]) -> bool:
    table = elf.cells("I", before.content(section))
    for start in (0, 1):
        numbers = table[start::_PROFILE_CELLS]
        table[start::_PROFILE_CELLS] = array("I", map(moved.get, numbers, numbers))
    return table == elf.cells("I", after.content(section))


def _uleb128(content: bytes) -> list[int]:
    """The numbers of a table of ULEB128, seven bits per byte, the lowest first."""
    numbers, value, shift = [], 0, 0
    for byte in content:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(value)
            value = shift = 0
        elif shift > 63:
            raise MalformedError("a number of more than 64 bits in an address-significance table")
    if shift:
        raise MalformedError("half a number in an address-significance table")
    return numbers

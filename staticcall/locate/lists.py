"""What the lists of an object name, by their relocations alone.

A list of places in an object is zeros, and a relocation for each says where it leads. A module has some thousand of
them and a few static calls: filling all of them in, to look at some, is most of a report's time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import compress
from operator import add

from staticcall.abi import elf64
from staticcall.abi.static_call import TRAMPOLINE_SIZE
from staticcall.model.image import Placement, Section

_WORD = 4
_REACH = 1 << 31
# Lists name places in few sections, and each is one pass.
_FEW = 8
# The byte of an entry's information that is the lowest of the symbol's number.
_LOWEST = 4


def leads(placement: Placement, section: Section) -> list[int] | None:
    """The addresses that the fields of a section lead to, each an s32 that is relative to itself.

    None where it is not that simple: where one is not relocated, or in another way, or leads too far.
    """
    own = placement.file.entries.get(section.number, [])
    count, rest = divmod(section.size, _WORD)
    if len(own) != 1 or rest or own[0].size != count * elf64.RELA.size:
        return None
    cells, addresses = elf64.column(placement.file.relocations(own[0]).raw, "Q", 0, 1), placement.addresses
    if cells[0::3] != _counting(_WORD, count.bit_length())[:count]:
        return None
    symbols, room = [], len(addresses)
    for info in cells[1::3]:
        symbol = info >> 32
        if info & 0xFFFFFFFF != elf64.R_X86_64_PC32 or symbol >= room:
            return None
        symbols.append(symbol)
    found = [*map(add, map(addresses.__getitem__, symbols), cells[2::3])]
    base = placement.bases[section.number]
    near = not found or (base + section.size - _REACH <= min(found) and max(found) < base + _REACH)
    return found if near else None


def near(
    placement: Placement, start: int, size: int, shape: tuple[int, int], places: Sequence[int], code: range
) -> list[int] | None:
    """The addresses in a list that may touch a place: what begins less than an extent before one, or in it.

    The list has `size` bytes at the address `start`. Its entries start with an s32 that is relative to itself; `shape`
    is how many words an entry has, and the extent in bytes of what is named. `places` are addresses in ascending
    order, of things with no more bytes than a trampoline. None where it is not that simple: what is no such list, has
    other relocations, or leads to a place outside of `code`, takes a closer look.
    """
    file, step, extent = placement.file, _WORD * shape[0], shape[1]
    number = next((number for number, base in enumerate(placement.bases) if base == start), 0)
    own = file.relocations_by_target().get(number, [])
    if len(own) != 1 or file.sections[number].size != size or size % step:
        return None
    table, count = file.relocations(own[0]), size // step
    # An entry may have other fields that are relocated as well, each as all others.
    each, rest = divmod(table.count, count)
    if rest or not each:
        return None
    cells = elf64.column(table.raw, "Q", 0, 1)
    where, infos, addends = cells[0::3], cells[1 :: 3 * each], cells[2 :: 3 * each]
    if where[::each] != _counting(step, count.bit_length())[:count]:
        return None
    if each > 1 and [*map(step.__rmod__, where)].count(0) != count:
        return None
    found: list[int] = []
    for number, (info, offsets) in enumerate(_by_info(infos, addends)):
        symbol = info >> 32
        if number == _FEW or info & 0xFFFFFFFF != elf64.R_X86_64_PC32 or symbol >= len(placement.addresses):
            return None
        base = placement.addresses[symbol]
        # An addend below 0 is a large number here, and off the code.
        if base + offsets[0] not in code or base + offsets[-1] not in code:
            return None
        first = bisect_left(places, base + offsets[0] - TRAMPOLINE_SIZE)
        touched = places[first : bisect_left(places, base + offsets[-1] + extent)]
        found += [base + offset for offset in _touching(offsets, base, extent, touched)]
    return found


def _touching(offsets: list[int], base: int, extent: int, places: Sequence[int]) -> Iterator[int]:
    """What begins at one of some offsets in ascending order and may touch a place."""
    if len(offsets) < len(places):
        for offset in offsets:
            at = bisect_left(places, base + offset - TRAMPOLINE_SIZE + 1)
            if at < len(places) and places[at] < base + offset + extent:
                yield offset
        return
    last = 0
    for place in places:
        last = bisect_left(offsets, place - base - extent + 1, last)
        while last < len(offsets) and offsets[last] < place - base + TRAMPOLINE_SIZE:
            yield offsets[last]
            last += 1


def _by_info(infos: array[int], addends: array[int]) -> Iterator[tuple[int, list[int]]]:
    """The addends, in ascending order, of the entries that have the same type and name the same symbol."""
    count, data = len(infos), elf64.little_endian(infos)
    if infos == infos[:1] * count:
        yield infos[0], sorted(addends)
        return
    # Mostly the lowest byte of the symbol's number tells them apart, and bytes are quickly compared.
    lowest, values = data[_LOWEST :: elf64.POINTER_SIZE], addends.tolist()
    others = (data[place :: elf64.POINTER_SIZE] for place in range(elf64.POINTER_SIZE) if place != _LOWEST)
    if all(other.count(other[0]) == count for other in others):
        for number in sorted(set(lowest)):
            marks = lowest.translate(_only(number))
            yield infos[lowest.index(number)], sorted(compress(values, marks))
        return
    for info in sorted(set(infos)):
        yield info, sorted(compress(values, map(info.__eq__, infos)))


@cache
def _only(number: int) -> bytes:
    """What makes 1 of this byte, and 0 of all others."""
    return bytes(byte == number for byte in range(256))


@cache
def _counting(step: int, bits: int) -> array[int]:
    """The multiples of a number, fewer than 2^bits of them."""
    return array("Q", range(0, step << bits, step))

"""Where functions end, as the kernel's own unwinder has it.

A list of names does not say it: a function seems to reach up to the next one, over whatever is between them that has no
name. Such code there is. A weak function that another one replaced stays and loses its symbol, and a call in it is in
no function. The ORC tables have an entry wherever the way back to the caller changes: `.orc_unwind_ip` with the places,
each relative to its own, `.orc_unwind` with six bytes for each, all zero where the unwinder knows nothing: in padding.

Since 6.4 such code is among what it knows nothing of. Before, it has entries as any function. What begins behind
padding, where functions are aligned to and with the stack as at a function's start, is reached by a branch if it is a
part of the function in front; where none leads there, it is a function that has no name. Sources:
tools/objtool/orc_gen.c, check.c and arch/x86/include/asm/orc_types.h, Linux 6.1 and 6.12.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import reduce
from itertools import chain, compress
from operator import add, or_
from typing import Final, NamedTuple

from staticcall.abi import elf64
from staticcall.model.symbols import SymbolTable
from staticcall.read.bare import Bare
from staticcall.read.listing import Listing, table_of

_PLACES, _ENTRIES = ".orc_unwind_ip", ".orc_unwind"
_PLACE_SIZE: Final = 4
_ENTRY_SIZE: Final = 6
# What is shorter fills up to where the next function may begin.
_PADDING: Final = 16
_IS_ZERO: Final = bytes(byte == 0 for byte in range(256))
# The return address is on top of the stack, eight bytes below where it was; kernels since 6.4 number types otherwise.
_AT_ENTRY: Final = bytes([8, 0, 0, 0, 5, 0])
_FUNCTION_ALIGNMENT: Final = 16
# A jump of any kind at any byte, and its displacement.
_SHORT_JUMP: Final = re.compile(rb"(?=[\x70-\x7f\xe0-\xe3\xeb](.))", re.DOTALL)
_NEAR_JUMP: Final = re.compile(rb"(?=(?:\xe9|\x0f[\x80-\x8f])(..(?:\0\0|\xff\xff)))", re.DOTALL)
# No function is longer, and so no jump inside one.
_LONGEST: Final = 1 << 16
_SHORT_REACH: Final = 130
# How much code is looked through: a kernel of 6.1 has less than a million bytes in question.
_MOST_CODE: Final = 1 << 23
_JUMP_TABLE: Final = b"__start___jump_table", b"__stop___jump_table"
# Where an entry has the place that it leads to, and how large it is.
_JUMP_ENTRY: Final = 4, 16
_FIXUPS: Final = "__ex_table"
_FIXUP_ENTRY: Final = 4, 12


def named_by(listing: Listing, bare: Bare) -> SymbolTable:
    """The symbol table that a list of names makes for a file."""
    return table_of(listing, {*bare.bounds(), *_ends(bare, listing)})


def _ends(bare: Bare, listing: Listing) -> Iterator[int]:
    """Where code begins that belongs to no function, up to the next symbol."""
    addresses = listing.addresses
    orc = _read(bare)
    if orc is None:
        return
    for start, stop in _nobodys(orc):
        following = bisect_right(addresses, start)
        if following < len(addresses) and addresses[following] <= stop:
            yield start
    yield from _nameless(orc, bare, listing)


class _Orc(NamedTuple):
    """Where each entry holds from, the entries, and the numbers of those that are all zero."""

    base: int
    fields: array[int]
    entries: bytes
    zeros: list[int]

    def place(self, number: int) -> int:
        """The address from which an entry holds."""
        return self.base + _PLACE_SIZE * number + self.fields[number]


def _read(bare: Bare) -> _Orc | None:
    sections = {section.name: section for section in bare.sections if section.type == elf64.SHT_PROGBITS}
    places, entries = sections.get(_PLACES), sections.get(_ENTRIES)
    if places is None or entries is None:
        return None
    size = places.size // _PLACE_SIZE
    if places.size != size * _PLACE_SIZE or entries.size != size * _ENTRY_SIZE:
        return None  # tables of another kind
    fields = elf64.column(bare.source.read(places.offset, places.size), "i", 0, 1)
    data = bare.source.read(entries.offset, entries.size)
    # Whole columns of bytes at once, as large integers: a kernel has half a million entries.
    used = reduce(or_, (int.from_bytes(data[place::_ENTRY_SIZE], "little") for place in range(_ENTRY_SIZE)))
    zeros = list(compress(range(size - 1), used.to_bytes(size, "little").translate(_IS_ZERO)))
    return _Orc(places.address, fields, data, zeros)


def _nobodys(orc: _Orc) -> Iterator[tuple[int, int]]:
    """Every stretch of code, but padding, of which the unwinder knows nothing: start and stop."""
    fields = orc.fields
    for number in orc.zeros:
        length = fields[number + 1] - fields[number] + _PLACE_SIZE
        if length >= _PADDING:
            start = orc.place(number)
            yield start, start + length


def _nameless(orc: _Orc, bare: Bare, listing: Listing) -> Iterator[int]:
    """Where functions begin that have no name, in a kernel before 6.4."""
    addresses, entries, size = listing.addresses, orc.entries, _ENTRY_SIZE
    behind = (number + 1 for number in orc.zeros)
    starts = [orc.place(n) for n in behind if entries[n * size : (n + 1) * size] == _AT_ENTRY]
    starts = sorted({start for start in starts if not start % _FUNCTION_ALIGNMENT}.difference(addresses))
    table = _jump_table(listing) if starts else None
    if table is None:
        return  # whatever lies behind a jump that the kernel patches in would be taken for one
    fixups = [s for s in bare.sections if s.name == _FIXUPS and s.type == elf64.SHT_PROGBITS]
    reached = set(_targets(bare, table, *_JUMP_ENTRY))
    for section in fixups:
        reached.update(_targets(bare, range(section.address, section.address + section.size), *_FIXUP_ENTRY))
    left = _MOST_CODE
    for start in starts:
        following = bisect_right(addresses, start)
        if 0 < following < len(addresses) and start not in reached:
            code = range(addresses[following - 1], addresses[following])
            left -= min(len(code), _LONGEST)
            if left < 0:
                return
            if not _jumped_to(bare, code, start):
                yield start


def _jump_table(listing: Listing) -> range | None:
    """Where the table of jumps that are patched is; None where the names do not say it."""
    places = []
    for name in _JUMP_TABLE:
        number = listing.number_of(name)
        if number is None:
            return None
        places.append(listing.addresses[number])
    return range(*places)


def _targets(bare: Bare, table: range, at: int, size: int) -> Iterator[int]:
    """Where the entries of a table lead, which have distances from themselves."""
    data = bare.bytes_at(table.start, len(table)) or b""
    words = len(data) // size * size // 4
    fields = elf64.column(data[: 4 * words], "i", at // 4, size // 4)
    return map(add, fields, range(table.start + at, table.stop, size))


def _jumped_to(bare: Bare, code: range, target: int) -> bool:
    """Whether there may be a jump to an address in some code."""
    data = bare.bytes_at(code.start, len(code)) if len(code) <= _LONGEST else None
    if data is None:
        return True
    at = target - code.start
    near = max(at - _SHORT_REACH, 0), at + _SHORT_REACH
    return any(
        match.end(1) + int.from_bytes(match[1], "little", signed=True) == at
        for match in chain(_SHORT_JUMP.finditer(data, *near), _NEAR_JUMP.finditer(data))
    )

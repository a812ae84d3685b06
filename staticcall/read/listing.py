"""Names that come as a list of addresses, letters and names, as `nm` prints them, made into a symbol table.

A list has neither sizes nor types. Both follow from what else there is: a symbol ends where the next one or its section
does, and the letter tells code from data. What the linker's script puts between two sections is no function, though
its letter may be that of one; scripts/kallsyms.c has the same trouble and the same answer.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import compress, count, islice
from operator import eq, sub
from typing import Final, NamedTuple

from staticcall.abi import elf64
from staticcall.model.symbols import Spelt, SymbolTable, starts_in


class Listing(NamedTuple):
    """Names in ascending order of their addresses; `letters` has one of nm's letters for each.

    `names` has the offset of each name in `strings`, where it ends with a zero byte, `initials` its first byte.
    """

    addresses: array[int]
    letters: bytes
    initials: bytes
    names: array[int]
    strings: bytes | Spelt

    def name(self, number: int) -> bytes:
        """One of the names."""
        start = self.names[number]
        return self.strings[start : self.strings.find(b"\0", start)]

    def number_of(self, name: bytes) -> int | None:
        """Which symbol has a name: the first of several, None of none."""
        found = starts_in(self.strings, [(name + b"\0", (b"",))]).intersection(self.names)
        return min(map(self.names.index, found), default=None)


TEXT_LETTERS: Final = b"tTwWi"
# Upper case is global. W and V are weak, u is unique, i an indirect function, A absolute, which per-CPU symbols are.
_KINDS: Final = (
    (b"tTwW", elf64.STT_FUNC),
    (b"i", elf64.STT_GNU_IFUNC),
    (b"dDbBrRgGsSvVuaA", elf64.STT_OBJECT),
    (b"nNpC-?", elf64.STT_NOTYPE),
)
LETTERS: Final = b"".join(letters for letters, _ in _KINDS)
_WEAK: Final = b"wWvV"
# What a linker's script defines at the ends of sections.
_MARK: Final = re.compile(rb"__(?:start|stop|end)_.*|__.*_(?:start|end)|_[se]?(?:init|exit)?text|_sdata|_edata|_end")


def _binding(letter: int) -> int:
    if letter in _WEAK:
        return elf64.STB_WEAK
    return elf64.STB_GLOBAL if chr(letter).isupper() or letter in b"ui" else elf64.STB_LOCAL


def _kind(letter: int) -> int:
    return next((kind for letters, kind in _KINDS if letter in letters), elf64.STT_NOTYPE)


# The byte of a symbol's type and binding, and the lower and the upper one of its section, for each letter. Any section
# that is not "undefined" will do: nobody asks which one it is.
_INFO: Final = bytes(_binding(letter) << 4 | _kind(letter) for letter in range(256))
_SECTION: Final = [elf64.SHN_ABS if letter in b"aA" else 1 for letter in range(256)]
_SECTION_BYTES: Final = bytes(n & 0xFF for n in _SECTION), bytes(n >> 8 for n in _SECTION)
_INFO_AT, _SECTION_AT = 4, 6
_NO_END: Final = (1 << 64) - 1


def table_of(listing: Listing, bounds: Iterable[int]) -> SymbolTable:
    """The symbol table that such a list stands for; `bounds` are addresses that no symbol reaches across."""
    labels = set(_labels(listing))
    cells = array("Q", bytes(len(listing.addresses) * elf64.SYMBOL.size))
    cells[0::3] = array("Q", listing.names)
    cells[1::3] = listing.addresses
    cells[2::3] = _sizes(listing.addresses, labels, bounds)
    table = bytearray(elf64.little_endian(cells))
    info = bytearray(listing.letters.translate(_INFO))
    for number in labels:
        info[number] &= 0xF0  # no type
    table[_INFO_AT :: elf64.SYMBOL.size] = info
    for place, column in enumerate(_SECTION_BYTES, _SECTION_AT):
        table[place :: elf64.SYMBOL.size] = listing.letters.translate(column)
    return SymbolTable(bytes(table), listing.strings)


def _labels(listing: Listing) -> Iterator[int]:
    """Numbers of what is no function though its letter says so: local labels, and the linker's where code is too."""
    addresses, letters = listing.addresses, listing.letters
    # Compilers and assemblers keep names that begin with a dot for labels.
    initials = listing.initials
    number = initials.find(b".")
    while number >= 0:
        if letters[number] in TEXT_LETTERS:
            yield number
        number = initials.find(b".", number + 1)
    twins = list(compress(count(), map(eq, addresses, islice(addresses, 1, None))))
    for number in sorted({*twins, *(number + 1 for number in twins)}):
        if letters[number] in TEXT_LETTERS and _MARK.fullmatch(listing.name(number)):
            yield number


def _sizes(addresses: array[int], labels: set[int], bounds: Iterable[int]) -> array[int]:
    """How far each symbol reaches: to the next one that is no label, or to a bound. A label has no size."""
    ends = array("Q", [*addresses[1:], _NO_END] if addresses else [])
    last = len(ends) - 1
    at_label = Counter(addresses[number] for number in labels)
    # Addresses that only labels have end nothing.
    skipped = {a for a, n in at_label.items() if bisect_right(addresses, a) - bisect_left(addresses, a) == n}
    unclear = {*compress(count(), map(eq, addresses, ends)), *(number - 1 for number in labels)}
    for number in sorted(unclear, reverse=True):
        if 0 <= number < last and (addresses[number] == ends[number] or ends[number] in skipped):
            ends[number] = ends[number + 1]
    for bound in sorted(bounds):
        number = bisect_left(addresses, bound) - 1
        while number >= 0 and ends[number] > bound:
            ends[number] = bound
            number -= 1
    sizes = array("Q", map(sub, ends, addresses))
    for number in (*labels, *range(bisect_left(addresses, addresses[-1]) if addresses else 0, len(ends))):
        if number in labels or ends[number] == _NO_END:
            sizes[number] = 0
    return sizes

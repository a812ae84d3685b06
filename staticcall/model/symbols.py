"""The symbol table of an image, asked in bulk."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import NamedTuple, Protocol

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError


class Symbol(NamedTuple):
    """One entry of the symbol table."""

    name: str
    address: int
    size: int
    type: int
    binding: int
    section_index: int


# A piece that some names share, and what of the name may stand before it: that many bytes, or these.
Stem = tuple[bytes, tuple[int | bytes, ...]]


class Spelt(Protocol):
    """Strings that are made when they are asked for, at offsets as in a table of strings."""

    def find(self, piece: bytes, start: int, /) -> int:
        """Where a zero byte is at or behind an offset."""
        ...

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes of one string."""
        ...

    def starts(self, stems: Iterable[Stem]) -> set[int]:
        """Where the strings begin that have one of the stems behind one of its leads."""
        ...


def starts_in(strings: bytes | Spelt, stems: Iterable[Stem]) -> set[int]:
    """The offsets of the names with one of the stems behind one of its leads, and of some that only may be."""
    if not isinstance(strings, bytes):
        return strings.starts(stems)
    # Linkers share the tails of strings, so a name may start inside another: every occurrence is a
    # candidate, and the table's own offsets decide.
    offsets: set[int] = set()
    for stem, leads in stems:
        places = []
        place = strings.find(stem)
        while place >= 0:
            places.append(place)
            place = strings.find(stem, place + 1)
        for lead in leads:
            size = len(lead) if isinstance(lead, bytes) else lead
            offsets.update([place - size for place in places])
    return offsets


class SymbolTable:
    """The symbol table as it is in the file, and never as 180,000 objects.

    Reading a kernel's table entry by entry takes seconds. Most questions are about a few names or a few
    addresses, so a whole column is walked inside C and only what fits becomes a `Symbol`.
    """

    __slots__ = ("_by_type", "_names", "_strings", "_table")

    def __init__(self, table: bytes | bytearray, strings: bytes | Spelt) -> None:
        self._table = table
        self._strings = strings
        # An entry is name(4) info(1) other(1) section(2) value(8) size(8): 6 words, 3 quads, 24 bytes.
        self._names = elf64.column(table, "I", 0, 6)
        self._by_type: dict[int, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def _symbols(self, numbers: Iterable[int]) -> Iterator[Symbol]:
        """The symbols with these numbers, undefined ones left out."""
        table, strings, size = self._table, self._strings, elf64.SYMBOL.size
        unpack = elf64.SYMBOL.unpack_from
        room = MOST_NAMES
        for number in numbers:
            name, info, _, section, value, extent = unpack(table, number * size)
            end = strings.find(b"\0", name)
            room -= end - name
            if end < 0 or room < 0:
                what = "runs past the string table" if end < 0 else "is longer than any name"
                raise MalformedError(f"a symbol's name {what}", advice="the symbol table is damaged")
            if section != elf64.SHN_UNDEF:
                text = strings[name:end].decode("utf-8", "backslashreplace")
                yield Symbol(text, value, extent, info & 0xF, info >> 4, section)

    def _starting_at(self, offsets: set[int]) -> list[Symbol]:
        # compress() and map() keep the walk over the column in C.
        return list(self._symbols(compress(range(len(self._names)), map(offsets.__contains__, self._names))))

    def named(self, name: str) -> list[Symbol]:
        """Every defined symbol of this name, in table order; what is no text in a command line stands for its bytes."""
        return self._starting_at(starts_in(self._strings, [(name.encode(errors="surrogateescape") + b"\0", (0,))]))

    def matching(self, stems: Iterable[Stem]) -> list[Symbol]:
        """Every defined symbol whose name contains one of the stems behind one of its leads, in table order.

        All stems together cost one walk over the table.
        """
        return self._starting_at(starts_in(self._strings, stems))

    def at(self, addresses: set[int]) -> dict[int, Symbol]:
        """The best symbol that starts at each address, see `_preference`."""
        if not addresses:
            return {}
        best: dict[int, Symbol] = {}
        for symbol in self._symbols(self._numbers_at(addresses)):
            if symbol.address not in addresses or symbol.type in _NO_PLACES:
                continue
            other = best.get(symbol.address)
            if other is None or _preference(symbol) < _preference(other):
                best[symbol.address] = symbol
        return best

    def _numbers_at(self, addresses: set[int]) -> Iterable[int]:
        """Numbers of the symbols that may start at one of the addresses, few of them wrong."""
        size = elf64.SYMBOL.size
        if len(addresses) > _FEW:
            values = elf64.column(self._table, "Q", 1, 3)
            return compress(range(len(values)), map(addresses.__contains__, values))
        # For a few addresses whole columns of bytes are compared at once, as masks in large integers.
        fits = -1
        for place in range(3):
            wanted = bytes((address >> 8 * place) & 0xFF for address in addresses)
            mask = bytes(byte in wanted for byte in range(256))
            fits &= int.from_bytes(self._table[_VALUE_OFFSET + place :: size].translate(mask), "little")
        return compress(range(len(self)), fits.to_bytes(len(self), "little"))

    def names_at(self, addresses: Iterable[int]) -> dict[int, str]:
        """The name of the best symbol that starts at each address, see `at`; 0 is NULL and has none."""
        return {address: symbol.name for address, symbol in self.at(set(addresses) - {0}).items()}

    def _numbers_of(self, type_: int) -> Iterator[int]:
        infos = self._table[4 :: elf64.SYMBOL.size]
        fits = bytes(info & 0xF == type_ for info in range(256))
        return compress(range(len(infos)), infos.translate(fits))

    def containing(self, address: int, type_: int = elf64.STT_FUNC) -> Symbol | None:
        """The function, or the symbol of another type, whose extent covers the address, or None."""
        if type_ not in self._by_type:
            values = elf64.column(self._table, "Q", 1, 3)
            numbers = sorted(self._numbers_of(type_), key=values.__getitem__)
            self._by_type[type_] = ([values[number] for number in numbers], numbers)
        starts, numbers = self._by_type[type_]
        position = bisect_right(starts, address) - 1
        found: list[Symbol] = []
        # Aliases and nested extents (a function's cold part, `__pfx_` symbols) stand next to each other.
        for nearby in range(position, max(position - _NEARBY, -1), -1):
            if found and starts[nearby] != found[0].address:
                break
            found += (s for s in self._symbols((numbers[nearby],)) if s.address <= address < s.address + s.size)
        return min(found, key=_preference, default=None)

    def function_at(self, address: int) -> str | None:
        """The function that covers the address and how far it is into that, as name+0x12; None where there is none."""
        symbol = self.containing(address)
        return f"{symbol.name}+{address - symbol.address:#x}" if symbol else None

    def sized(self, size: int) -> list[Symbol]:
        """Every defined variable of this many bytes, in table order."""
        sizes = elf64.column(self._table, "Q", 2, 3)
        numbers = compress(range(len(sizes)), map(size.__eq__, sizes))
        return [symbol for symbol in self._symbols(numbers) if symbol.type == elf64.STT_OBJECT]

    def function_names(self) -> list[str]:
        """The names of all defined functions, for suggestions after a misspelt one."""
        return [symbol.name for symbol in self._symbols(self._numbers_of(elf64.STT_FUNC))]


def _preference(symbol: Symbol) -> tuple[bool, bool, int, int, str]:
    """The name that a symbol's place is best known by comes first: the same, whatever order a file lists them in.

    Functions, then what is global, then what is weak. Of equals the one with fewer underscores in front, as the kernel
    itself chooses (scripts/kallsyms.c, compare_symbols()), then the one that comes first in a dictionary.
    """
    name = symbol.name
    return (
        name.startswith(_OFFERS),  # another name of what has a better one here
        symbol.type not in _FUNCTIONS,
        _BY_BINDING.get(symbol.binding, 0),
        len(name) - len(name.lstrip("_")),
        name,
    )


# Up to this many addresses the masks of bytes are selective.
_FEW = 32
_VALUE_OFFSET = 8
# Names share their ends, so many long ones fit in a small table: more than any file has, less than fills memory.
MOST_NAMES = 1 << 28
_NO_PLACES = frozenset({elf64.STT_SECTION, elf64.STT_FILE, elf64.STT_TLS})
_BY_BINDING = {elf64.STB_WEAK: 1, elf64.STB_LOCAL: 2}
# How many symbols that begin in front of an address are looked at; more aliases than this nothing has.
_NEARBY = 8
_FUNCTIONS = frozenset({elf64.STT_FUNC, elf64.STT_GNU_IFUNC})
_OFFERS = (static_call.OFFER_PREFIX, static_call.OFFERED_KEY_PREFIX)

NO_SYMBOLS = SymbolTable(b"", b"")

"""The symbols of an object that is read as if it were linked: their addresses, and the table with these as values.

A module has some thousand symbols, and a report asks for a few of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from operator import add
from struct import Struct

from staticcall.abi import elf64
from staticcall.model.image import Placement
from staticcall.model.object import ObjectSymbols
from staticcall.model.symbols import Symbol, SymbolTable

# Whoever asks for more addresses than this gets all of them at once.
_FEW = 512
_MASK = 0xFFFF_FFFF_FFFF_FFFF
# Where an entry of the table has its section and its value.
_SECTION, _SECTION_AT, _VALUE = Struct("<H"), 6, 8


class SymbolAddresses(dict[int, int]):
    """The address of every symbol, by its number; those that were asked for are kept.

    `bases` has the address of each section, `undefined` that of each undefined symbol. What is in no section of the
    file keeps its value.
    """

    __slots__ = ("_all", "_bases", "_symbols", "_undefined")

    def __init__(self, symbols: ObjectSymbols, bases: array[int], undefined: Mapping[int, int]) -> None:
        super().__init__(undefined)
        self._symbols = symbols
        self._bases = bases
        self._undefined = undefined
        self._all: array[int] | None = None

    def __len__(self) -> int:
        return len(self._symbols)

    def __missing__(self, number: int) -> int:
        if self._all is not None or dict.__len__(self) > len(self._undefined) + _FEW:
            self[number] = address = self.all()[number]
            return address
        section, value = self._symbols.place(number)
        self[number] = value = value + self._bases[section] & _MASK if 0 < section < len(self._bases) else value
        return value

    def all(self) -> array[int]:
        """All of them."""
        if self._all is None:
            self._all = self._work_out()
        return self._all

    def _work_out(self) -> array[int]:
        values, numbers, bases = elf64.column(self._symbols.raw, "Q", 1, 3), self._symbols.sections(), self._bases
        for number, address in self._undefined.items():
            values[number] = address
        homes = dict(enumerate(bases)) | {0: 0} | dict.fromkeys((elf64.SHN_ABS, elf64.SHN_COMMON), 0)
        with suppress(OverflowError, KeyError):
            return array("Q", map(add, values, map(homes.__getitem__, numbers)))
        for number, section in enumerate(numbers):
            if section < len(bases):
                values[number] = values[number] + bases[section] & _MASK
        return values


class PlacedSymbols(SymbolTable):
    """The symbol table with addresses for values; what is undefined is defined at the place that it got."""

    __slots__ = ("_filled", "_own", "_placement", "_places")

    def __init__(self, placement: Placement) -> None:
        symbols = placement.file.symbols
        # Filled in as far as it is asked for.
        self._own = bytearray(symbols.raw)
        super().__init__(self._own, symbols.strings)
        self._placement = placement
        self._places = {address: number for number, address in placement.undefined.items()}
        self._filled = False

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True
            cells = elf64.column(self._own, "Q", 0, 1)
            cells[1::3] = self._placement.addresses.all()
            self._own[:] = elf64.little_endian(cells)
            for number in self._placement.undefined:
                _SECTION.pack_into(self._own, number * elf64.SYMBOL.size + _SECTION_AT, elf64.SHN_ABS)

    def _symbols(self, numbers: Iterable[int]) -> Iterator[Symbol]:
        if not self._filled:
            numbers, addresses = list(numbers), self._placement.addresses
            for number in numbers:
                elf64.POINTER.pack_into(self._own, number * elf64.SYMBOL.size + _VALUE, addresses[number])
                if number in self._placement.undefined:
                    _SECTION.pack_into(self._own, number * elf64.SYMBOL.size + _SECTION_AT, elf64.SHN_ABS)
        return super()._symbols(numbers)

    def at(self, addresses: set[int]) -> dict[int, Symbol]:
        """The best symbol that starts at each address; a place that was made for a symbol is its own."""
        if addresses <= self._places.keys():
            return {symbol.address: symbol for symbol in self._symbols(map(self._places.__getitem__, addresses))}
        return super().at(addresses)

    def _numbers_at(self, addresses: set[int]) -> Iterable[int]:
        self._fill()
        return super()._numbers_at(addresses)

    def containing(self, address: int, type_: int = elf64.STT_FUNC) -> Symbol | None:
        """The function, or the symbol of another type, whose extent covers the address, or None."""
        self._fill()
        return super().containing(address, type_)

"""What the symbol table says about static calls: the names of keys and trampolines, and the landmarks.

The table is read in one piece and filtered by the string table: a kernel has 190,000 symbols of which a few
thousand matter. Names may share their ends in the string table, so every occurrence of a wanted text there
is a candidate and the symbols' own name offsets decide.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Container, Iterator, Sequence
from itertools import compress
from struct import Struct
from typing import NamedTuple

from staticcall.abi import static_call as abi
from staticcall.errors import MalformedError
from staticcall.verify.layout import Layout, Section
from staticcall.verify.source import Source

# name, info, section index, value; the size does not matter here
_SYMBOL = Struct("<IBxHQ8x")
_UNDEFINED = 0
_TYPE_MASK = 0xF
# STT_SECTION, STT_FILE, STT_TLS: their values are not the addresses of anything callable or stored.
_OTHER_TYPES = frozenset({3, 4, 6})

_PREFIXES = tuple(prefix.encode() for prefix in (abi.KEY_PREFIX, abi.TRAMPOLINE_PREFIX, *abi.OLD_TRAMPOLINE_PREFIXES))
_LANDMARKS = tuple(
    name.encode() + b"\0"
    for name in (
        *(abi.RETURN_THUNK, abi.RETURN0, abi.PLAIN_RETURN, abi.XOR_SYMBOL, abi.BANNER_SYMBOL),
        *(abi.TABLE_START, abi.TABLE_STOP),
    )
)

# Addresses by what follows the prefix in the symbol's name.
_Group = dict[str, frozenset[int]]


class Pair(NamedTuple):
    """The keys and trampolines that share a name; more than one each where the name is local to objects.

    A `hinted` one has no name of the image's own, and sites may contradict it.
    """

    name: str
    keys: frozenset[int]
    trampolines: frozenset[int]
    hinted: bool = False


class Names(NamedTuple):
    """Linked addresses by meaning.

    `xors` is where a kernel keeps the bytes that it writes for RET0, `banners` where it keeps its version; `table` is
    the extent that start and stop symbols give, or None.
    """

    pairs: tuple[Pair, ...]
    thunks: frozenset[int]
    return0: frozenset[int]
    returns: frozenset[int]
    xors: frozenset[int]
    banners: frozenset[int]
    table: tuple[int, int] | None


class _Symbols(NamedTuple):
    """The raw table, its column of name offsets, and the strings."""

    table: bytes
    names: array[int]
    strings: bytes

    def search(self, patterns: Sequence[bytes]) -> list[_Group]:
        """Return for each pattern the addresses of symbols whose name begins so, by the rest of their name.

        A pattern that ends in NUL stands for the whole name. No pattern may begin with another one.
        """
        places = {at: i for i, pattern in enumerate(patterns) for at in _occurrences(self.strings, pattern)}
        found: list[dict[str, set[int]]] = [{} for _ in patterns]
        for name, address in self._defined(places):
            i = places[name]
            pattern = patterns[i]
            rest = "" if pattern.endswith(b"\0") else self._text(name + len(pattern))
            found[i].setdefault(rest, set()).add(address)
        return [{rest: frozenset(group) for rest, group in groups.items()} for groups in found]

    def named(self, names: Collection[str]) -> _Group:
        """Return the addresses of symbols with these names, however many; every name is in the answer."""
        places = {at: text for at in set(self.names) if (text := self._text(at)) in names}
        found: dict[str, set[int]] = {name: set() for name in names}
        for name, address in self._defined(places):
            found[places[name]].add(address)
        return {name: frozenset(addresses) for name, addresses in found.items()}

    def _defined(self, places: Container[int]) -> Iterator[tuple[int, int]]:
        """Name offset and address of the defined symbols that have their name at one of these offsets."""
        # compress() and map() keep the walk over the column in C.
        for i in compress(range(len(self.names)), map(places.__contains__, self.names)):
            name, info, index, value = _SYMBOL.unpack_from(self.table, i * _SYMBOL.size)
            if index != _UNDEFINED and info & _TYPE_MASK not in _OTHER_TYPES:
                yield name, value

    def _text(self, offset: int) -> str:
        end = self.strings.find(b"\0", offset)
        return self.strings[offset : end if end >= 0 else None].decode("utf-8", "backslashreplace")


def _occurrences(strings: bytes, text: bytes) -> Iterator[int]:
    at = strings.find(text)
    while at >= 0:
        yield at
        at = strings.find(text, at + 1)


def _symbol_section(layout: Layout) -> Section | None:
    """Find the full symbol table, or what a stripped image keeps of it for the dynamic linker."""
    for wanted in ("SHT_SYMTAB", "SHT_DYNSYM"):
        for section in layout.sections:
            if section.type == wanted and section.body.size:
                return section
    return None


def _read(source: Source, layout: Layout) -> _Symbols:
    section = _symbol_section(layout)
    if section is None:
        return _Symbols(b"", array("I"), b"")
    if section.body.size % _SYMBOL.size or section.link >= len(layout.sections):
        raise MalformedError("a broken symbol table", path=source.path, offset=section.body.offset)
    strings = source.read(*layout.sections[section.link].body)
    table = source.read(*section.body)
    # One column at once: an object per symbol would be the slowest part of a proof.
    words = array("I", table)
    if sys.byteorder == "big":
        words.byteswap()
    return _Symbols(table, words[:: _SYMBOL.size // words.itemsize], strings)


def read_names(source: Source, layout: Layout) -> Names:
    """Collect what the symbols say; an image without symbols has no pairs and no landmarks.

    Raises `MalformedError` for a broken symbol table.
    """
    symbols = _read(source, layout)
    found = symbols.search([*_PREFIXES, *_LANDMARKS])
    landmarks = (groups.get("", frozenset[int]()) for groups in found[len(_PREFIXES) :])
    thunks, return0, returns, xors, banners, start, stop = landmarks
    return Names(
        tuple(_pairs(symbols, *found[: len(_PREFIXES)])),
        thunks,
        return0,
        returns,
        xors,
        banners,
        (min(start), min(stop)) if len(start) == len(stop) == 1 else None,
    )


def find_symbols(source: Source, layout: Layout, names: Sequence[str]) -> dict[str, frozenset[int]]:
    """Return the linked addresses of the symbols with these names, each name that there is; reads the table again."""
    found = _read(source, layout).search([name.encode() + b"\0" for name in names])
    return {name: groups[""] for name, groups in zip(names, found, strict=True) if groups}


def _pairs(symbols: _Symbols, keys: _Group, trampolines: _Group, *older: _Group) -> Iterator[Pair]:
    for name in sorted(keys.keys() | trampolines.keys()):
        yield Pair(name, keys.get(name, frozenset()), trampolines.get(name, frozenset()))
    for old in older:
        bare = symbols.named(old) if old else {}
        for name in sorted(old):
            yield Pair(name, bare[name], old[name])
